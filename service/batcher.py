"""Joins the rows of concurrent callers into batches. It knows no ONNX Runtime and no gRPC.

A batch is formed when a worker is free to run it: while all are busy, what arrives keeps company in the queue.
So a lone caller never waits, and under load batches grow by themselves.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from service.errors import QueueFullError, UnavailableError

Array = npt.NDArray[Any]
Rows = tuple[Array, ...]
"""Arrays with the same number of rows, the first axis."""


class Workers:
    """Threads that run batches, shared by all batchers of a service.

    Args:
        instances: how many batches run side by side.
    """

    def __init__(self, instances: int) -> None:
        self.instances = instances
        self.free = asyncio.Semaphore(instances)
        self._pool = ThreadPoolExecutor(instances, thread_name_prefix="engine")

    async def run(self, function: Callable[..., Rows], rows: Rows) -> Rows:
        """Runs a function in a thread. The caller holds one permit of `free`."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, lambda: function(*rows))

    def close(self) -> None:
        """Waits for what runs."""
        self._pool.shutdown()


@dataclass(frozen=True)
class _Piece:
    """A caller's rows, few enough for one batch."""

    rows: Rows
    answer: asyncio.Future[Rows]
    arrived: float

    @property
    def size(self) -> int:
        return len(self.rows[0])


@dataclass(frozen=True)
class Run:
    """A batch that has run."""

    rows: int
    waited: tuple[float, ...]
    """Seconds in the queue, by caller."""

    join_seconds: float
    run_seconds: float
    part_seconds: float
    """What it took to join the callers' rows, to run them, and to part the results."""


class Batcher:
    """A queue, and the task that makes batches of it.

    Args:
        function: from arrays of N rows to arrays of N rows; row i of the results depends on row i alone.
        workers: where it runs.
        max_batch_size: most rows in a batch.
        max_queue_size: most rows that wait; a call that would exceed it is refused.
        max_delay_seconds: how long rows may wait for company although a worker is free.
        on_batch: told the number of rows of each batch.
        on_run: told of each batch that has run.
    """

    def __init__(
        self,
        function: Callable[..., Rows],
        workers: Workers,
        *,
        max_batch_size: int,
        max_queue_size: int,
        max_delay_seconds: float = 0.0,
        on_batch: Callable[[int], None] = lambda _: None,
        on_run: Callable[[Run], None] = lambda _: None,
    ) -> None:
        self._function = function
        self._workers = workers
        self._max_batch_size = max_batch_size
        self._max_queue_size = max_queue_size
        self._max_delay_seconds = max_delay_seconds
        self._on_batch = on_batch
        self._on_run = on_run
        self._queue: deque[_Piece] = deque()
        self._arrival = asyncio.Event()
        self._running: set[asyncio.Task[None]] = set()
        self._closing = False
        self._dispatcher = asyncio.create_task(self._dispatch())

    @property
    def queue_length(self) -> int:
        """Rows that wait and whose caller still does. May be asked from any thread."""
        waiting = tuple(self._queue)  # a copy: the metrics are scraped while calls come and go
        return sum(piece.size for piece in waiting if not piece.answer.done())

    async def submit(self, *rows: Array, admitted: bool = False) -> Rows:
        """Runs the function on a caller's rows, in as many batches as they need.

        Cancelling the call drops what has not begun.

        Args:
            rows: arrays with the same number of rows.
            admitted: whether they belong to a call of which other rows were accepted before; such are not refused,
                as their caller would lose what was done already.

        Raises:
            QueueFullError: too much waits already; nothing was done.
            UnavailableError: the batcher is closing; nothing was done.
        """
        size = len(rows[0])
        if self._closing:
            raise UnavailableError("the server is stopping; try another")
        if not admitted and (waiting := self.queue_length) + size > self._max_queue_size:
            raise QueueFullError(
                f"{waiting} images wait already and {size} more exceed the queue's {self._max_queue_size}; "
                "try again later, with increasing pauses"
            )
        loop, now = asyncio.get_running_loop(), time.monotonic()
        pieces = [
            _Piece(tuple(array[i : i + self._max_batch_size] for array in rows), loop.create_future(), now)
            for i in range(0, size, self._max_batch_size)
        ]
        self._queue.extend(pieces)
        self._arrival.set()
        try:
            answers = [await piece.answer for piece in pieces]
        finally:
            for piece in pieces:
                piece.answer.cancel()
                if piece.answer.done() and not piece.answer.cancelled():
                    piece.answer.exception()  # of a sibling of one that failed: seen, and of no further use
        return answers[0] if len(answers) == 1 else _joined(answers)

    async def close(self) -> None:
        """Refuses new calls, and waits until the accepted ones are answered."""
        self._closing = True
        while any(not piece.answer.done() for piece in self._queue) or self._running:
            await asyncio.sleep(0.005)
        self._dispatcher.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._dispatcher

    async def _dispatch(self) -> None:
        while True:
            await self._arrival.wait()
            await self._wait_for_company()
            await self._workers.free.acquire()
            if batch := self._take():
                task = asyncio.create_task(self._execute(batch))
                self._running.add(task)
                task.add_done_callback(self._running.discard)
            else:
                self._workers.free.release()

    async def _wait_for_company(self) -> None:
        """Until a batch is full, or its oldest row has waited long enough."""
        while self._max_delay_seconds and 0 < self.queue_length < self._max_batch_size:
            age = time.monotonic() - self._queue[0].arrived
            if age >= self._max_delay_seconds:
                return
            self._arrival.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._arrival.wait(), self._max_delay_seconds - age)

    def _take(self) -> list[_Piece]:
        """The oldest pieces that fit into one batch; those whose callers have gone are dropped."""
        batch: list[_Piece] = []
        room = self._max_batch_size
        while self._queue:
            piece = self._queue[0]
            if not piece.answer.done():
                if piece.size > room:
                    break
                batch.append(piece)
                room -= piece.size
            self._queue.popleft()
        if self._queue:
            self._arrival.set()
        else:
            self._arrival.clear()
        return batch

    async def _execute(self, batch: Sequence[_Piece]) -> None:
        began = time.monotonic()
        try:
            rows = batch[0].rows if len(batch) == 1 else _joined([piece.rows for piece in batch])
            joined = time.monotonic()
            self._on_batch(len(rows[0]))
            results = await self._workers.run(self._function, rows)
        except Exception as error:
            for piece in batch:
                if not piece.answer.done():
                    piece.answer.set_exception(error)
            return
        finally:
            self._workers.free.release()
        ran = time.monotonic()
        first = 0
        for piece in batch:
            if not piece.answer.done():
                piece.answer.set_result(tuple(array[first : first + piece.size] for array in results))
            first += piece.size
        waited = tuple(began - piece.arrived for piece in batch)
        self._on_run(Run(first, waited, joined - began, ran - joined, time.monotonic() - ran))


def _joined(parts: Sequence[Rows]) -> Rows:
    return tuple(np.concatenate(arrays) for arrays in zip(*parts, strict=True))
