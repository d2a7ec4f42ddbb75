"""Makes a call that the server does not finish, and returns 130 after Ctrl-C: call.py HOST:PORT KIND.

Prints a line when a stream has its first response. The other kinds print nothing.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import sys
import threading
from typing import Any

import numpy as np

import glowserve

BLANK = np.zeros((8, 8), np.uint8)


def unary(target: str) -> None:
    with glowserve.Client(target) as client:
        client.score(BLANK)


def pausing(target: str) -> None:
    """Interrupted while the call waits for another attempt."""
    with glowserve.Client(target) as client:
        client.models()


def samples(target: str) -> None:
    with glowserve.Client(target) as client:
        for _ in client.iter_samples(100):
            print("the first response", flush=True)


def scores(target: str) -> None:
    with glowserve.Client(target) as client:
        for _ in client.iter_scores(itertools.repeat(BLANK)):
            print("the first response", flush=True)


def never_closed(target: str) -> None:
    for _ in glowserve.Client(target).iter_samples(100):
        print("the first response", flush=True)


def begun(target: str) -> None:
    """Sends itself SIGINT after gRPC has begun the call, and before gRPC has a thread that would end it."""
    start = threading.Thread.start

    def interrupt(self: threading.Thread) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        return start(self)

    with glowserve.Client(target) as client:
        threading.Thread.start = interrupt  # type: ignore[method-assign]
        client.sample(100)


def asynchronous(target: str) -> None:
    async def call() -> None:
        async with glowserve.AsyncClient(target) as client:
            await client.score(BLANK)

    asyncio.run(call())


KINDS = {each.__name__: each for each in (unary, pausing, samples, scores, never_closed, begun, asynchronous)}


def main() -> int:
    target, kind = sys.argv[1:]
    try:
        KINDS[kind](target)
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
