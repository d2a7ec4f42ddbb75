"""What the tests of scheduling share: a function in place of a model, a batcher around it, and its callers."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
from glowserve_service.scheduling.batcher import Batcher
from glowserve_service.scheduling.engine_threads import Rows
from glowserve_service.scheduling.submission import Answer
from glowserve_service.scheduling.ticket import Ticket
from glowserve_service.scheduling.workers import Workers

Array = npt.NDArray[np.int64]

# Seconds, far more than anything here takes: whatever is not over by then would never be.
PATIENCE = 60

# More batches than any test runs.
_ALL = 100_000


class Doubling:
    """Doubles each row and remembers its batches. While it is shut, a batch that has begun does not end."""

    def __init__(self, *, shut: bool = False) -> None:
        self.batches: list[list[int]] = []
        self._permits = threading.Semaphore(0 if shut else _ALL)

    def __call__(self, rows: Array) -> Rows:
        self.batches.append(rows.tolist())
        assert self._permits.acquire(timeout=PATIENCE)
        if (rows < 0).any():
            raise ArithmeticError("a row is negative")
        return (rows * 2,)

    @property
    def sizes(self) -> list[int]:
        return [len(batch) for batch in self.batches]

    def open(self) -> None:
        """Lets all batches end."""
        self._permits.release(_ALL)

    def let_one_end(self) -> None:
        """Lets one batch end: the one that runs, or else the next."""
        self._permits.release()

    async def step(self) -> None:
        """Ends the batch that runs, and returns when the next one has begun."""
        begun = len(self.batches)
        self.let_one_end()
        await until(lambda: len(self.batches) > begun)


@asynccontextmanager
async def batching(
    function: Callable[..., Rows], *, instances: int = 1, workers: Workers | None = None, **settings: Any
) -> AsyncIterator[Batcher]:
    """A batcher that is closed at the end, when no task and no thread of it may be left."""
    tasks, threads = asyncio.all_tasks(), threading.enumerate()
    own = workers or Workers(instances)
    batcher = Batcher(function, own.share(), **{"max_batch_size": 8, "max_queue_size": 10_000} | settings)
    try:
        yield batcher
    finally:
        if isinstance(function, Doubling):
            function.open()
        await asyncio.wait_for(batcher.close(), PATIENCE)
        if not workers:
            own.close()
    assert batcher.queue_length == 0
    assert asyncio.all_tasks() == tasks
    if not workers:
        new = set(threading.enumerate()) - set(threads)
        assert not [thread for thread in new if thread.name.startswith("engine")]  # gRPC's come and go


def ask(batcher: Batcher, *values: int, **ticket: Any) -> asyncio.Task[Answer]:
    """Submits rows, with a ticket of those fields."""
    return asyncio.create_task(batcher.submit(np.array(values), ticket=Ticket(**ticket)))


async def answer_of(task: asyncio.Task[Answer]) -> list[int]:
    """The doubled rows."""
    (doubled,) = (await asyncio.wait_for(task, PATIENCE)).rows
    return list(doubled.tolist())


async def answers_of(*tasks: asyncio.Task[Answer]) -> list[list[int]]:
    """The doubled rows of each."""
    return [await answer_of(task) for task in tasks]


async def end_of_cancelled(task: asyncio.Task[Any]) -> None:
    """Cancels a task, and returns when it has ended."""
    task.cancel()
    await asyncio.wait([task], timeout=PATIENCE)
    assert task.cancelled()


async def until(condition: Callable[[], bool]) -> None:
    """Returns when a condition holds that a thread, or the clock, brings about."""
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.001)


async def settle() -> None:
    """Returns when every other task waits for something outside the event loop."""
    for _ in range(20):
        await asyncio.sleep(0)


def soon(seconds: float) -> float:
    """A deadline."""
    return time.monotonic() + seconds


async def until_passed(deadline: float) -> None:
    """Lets a deadline pass."""
    await until(lambda: time.monotonic() > deadline)
