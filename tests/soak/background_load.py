"""Calls that are made while a test does something to the service."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc

from tests.soak.callers import NO_RETRIES, WELL_BEHAVED, Caller
from tests.soak.known_answers import KnownAnswers

_LONGEST_WAIT_SECONDS = 120.0


@dataclass(frozen=True)
class EndedCall:
    """A call that has ended; times are those of `time.monotonic`."""

    request_id: str
    code: str
    message: str
    """Of the status."""
    began: float
    ended: float

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.ended - self.began


class Load:
    """The calls of a running load."""

    def __init__(self) -> None:
        self.ended = list[EndedCall]()
        """In the order in which they ended."""
        self._another_ended = asyncio.Event()

    def add(self, call: EndedCall) -> None:
        """Adds a call that has ended."""
        self.ended.append(call)
        self._another_ended.set()

    async def more(self, n: int) -> None:
        """Waits until n more calls have ended.

        Raises:
            TimeoutError: that took two minutes.
        """
        goal = len(self.ended) + n
        async with asyncio.timeout(_LONGEST_WAIT_SECONDS):
            while len(self.ended) < goal:
                self._another_ended.clear()
                await self._another_ended.wait()


@asynccontextmanager
async def closed_load(
    target: str,
    known: Mapping[int, KnownAnswers],
    *,
    callers: int,
    connections: int = 1,
    options: list[tuple[str, Any]] = NO_RETRIES,
    name: str = "call",
    wait_for_ready: bool = False,
    errors: bool = False,
    until_error: bool = False,
) -> AsyncIterator[Load]:
    """Runs callers that each wait for an answer before the next call, until the block ends.

    The calls are of all well-behaved kinds. A wrong answer raises WrongAnswerError in the block.

    Args:
        target: of the servers.
        known: the known answers, by version.
        callers: how many call side by side.
        connections: how many connections they share.
        options: of the connections.
        name: the request ids begin with it.
        wait_for_ready: whether calls wait for a connection instead of failing without one.
        errors: whether calls may fail; else a failed call raises AssertionError in the block.
        until_error: whether a caller stops after its first failed call. The end of the block then waits until every
            caller has stopped.
    """
    load, stopping = Load(), asyncio.Event()

    async def work(number: int, caller: Caller) -> None:
        rng, count = random.Random(f"{name}-{number}"), 0
        while not stopping.is_set():
            call = await _call(caller, rng, f"{name}-{number}-{count}")
            assert errors or call.code == "OK", call
            load.add(call)
            if until_error and call.code != "OK":
                return
            count += 1

    async with AsyncExitStack() as stack:
        shared = list[Caller]()
        for _ in range(connections):
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(target, options))
            shared.append(Caller(channel, known, wait_for_ready=wait_for_ready))
        group = await stack.enter_async_context(asyncio.TaskGroup())
        for number in range(callers):
            group.create_task(work(number, shared[number % connections]))
        yield load
        if not until_error:
            stopping.set()


@asynccontextmanager
async def open_load(target: str, known: Mapping[int, KnownAnswers], rate: float) -> AsyncIterator[Load]:
    """Makes calls at random times until the block ends, whether or not earlier ones are answered (Poisson arrivals).

    A wrong answer, and a call that fails, raise in the block.

    Args:
        target: HOST:PORT.
        known: the known answers, by version.
        rate: calls a second.
    """
    load, rng = Load(), random.Random(0)

    async def call(caller: Caller, number: int) -> None:
        ended = await _call(caller, rng, f"call-{number}")
        assert ended.code == "OK", ended
        load.add(ended)

    async def arrive(caller: Caller, group: asyncio.TaskGroup) -> None:
        due, number = time.monotonic(), 0
        while True:
            group.create_task(call(caller, number))
            due, number = due + rng.expovariate(rate), number + 1
            await asyncio.sleep(max(0.0, due - time.monotonic()))

    async with grpc.aio.insecure_channel(target, NO_RETRIES) as channel, asyncio.TaskGroup() as group:
        arrivals = group.create_task(arrive(Caller(channel, known), group))
        yield load
        arrivals.cancel()


async def _call(caller: Caller, rng: random.Random, request_id: str) -> EndedCall:
    began = time.monotonic()
    outcome = await caller.call(rng.choice(WELL_BEHAVED), rng, request_id)
    return EndedCall(request_id, outcome.code, outcome.message, began, time.monotonic())
