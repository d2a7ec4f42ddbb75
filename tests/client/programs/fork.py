"""Forks after a call, and calls in the children and in the parent: fork.py HOST:PORT KIND. Children print a line."""

from __future__ import annotations

import asyncio
import faulthandler
import multiprocessing
import os
import sys
from collections.abc import Callable
from typing import Any

import glowserve

CONTEXT = multiprocessing.get_context("fork")


def say(line: str) -> None:
    """Writes a line at once: other children write to the same pipe."""
    os.write(1, f"{line}\n".encode())


def child(call: Callable[[], Any]) -> None:
    faulthandler.dump_traceback_later(60, exit=True)
    try:
        for _ in range(20):
            call()
        say("ok")
    except (RuntimeError, ValueError, glowserve.RequestError) as error:
        say(repr(error))


def fork(call: Callable[[], Any]) -> None:
    children = [CONTEXT.Process(target=child, args=(call,)) for _ in range(3)]
    for each in children:
        each.start()
    for each in children:
        each.join(60)
        assert each.exitcode == 0, each.exitcode


def ask(target: str) -> None:
    with glowserve.Client(target) as client:
        client.models()


async def ask_asynchronously(target: str) -> None:
    async with glowserve.AsyncClient(target) as client:
        await client.models()


def inherited(target: str) -> None:
    client = glowserve.Client(target)
    client.models()
    fork(lambda: client.sample(3, temperature=0))
    client.models()


def fresh(target: str) -> None:
    client = glowserve.Client(target)
    client.models()
    fork(lambda: ask(target))
    client.models()


def asynchronous(target: str) -> None:
    asyncio.run(ask_asynchronously(target))
    client = glowserve.AsyncClient(target)
    fork(lambda: asyncio.run(client.models()))
    asyncio.run(client.models())


def ended_loop(target: str) -> None:
    client = glowserve.AsyncClient(target)
    asyncio.run(client.models())
    fork(lambda: asyncio.run(client.models()))
    asyncio.run(client.models())


def connected(target: str) -> None:
    async def call() -> None:
        async with glowserve.AsyncClient(target) as client:
            await client.models()
            fork(lambda: ask(target))
            await client.models()

    asyncio.run(call())


def both(target: str) -> None:
    client = glowserve.Client(target)
    client.models()
    asyncio.run(ask_asynchronously(target))
    fork(lambda: (client.models(), asyncio.run(ask_asynchronously(target))))
    client.models()


def pool(target: str) -> None:
    client = glowserve.Client(target)
    client.models()
    with CONTEXT.Pool(3) as workers:
        for models in workers.map(glowserve.Client.models, [client] * 30):
            assert len(models) == 1
    client.models()
    say("ok")


def during_a_call(target: str) -> None:
    client = glowserve.Client(target)
    samples = client.iter_samples(100_000, temperature=0)
    next(samples)
    fork(client.models)
    samples.close()
    client.models()


def during_a_call_of_a_loop(target: str) -> None:
    async def call() -> None:
        async with glowserve.AsyncClient(target) as client:
            samples = client.iter_samples(100_000, temperature=0)
            await anext(samples)
            fork(lambda: ask(target))
            await samples.aclose()

    asyncio.run(call())


if __name__ == "__main__":
    globals()[sys.argv[2]](sys.argv[1])
