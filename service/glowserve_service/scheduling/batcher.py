"""Joins the rows of concurrent callers into batches. It knows no ONNX Runtime and no gRPC.

A batch is formed when a worker is free to run it: while all are busy, what arrives keeps company in the queue.
So a lone caller never waits, and under load batches grow by themselves.

Submissions that fit into a batch are short. They are never divided, and go first, in the order of arrival. Long ones
fill what is left of each batch, in turns. A batch that short ones fill is followed by one of which half is kept for
the long: neither kind holds up the other.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from glowserve_service.errors import (
    DeadlineError,
    QueueFullError,
    UnavailableError,
    WaitTooLongError,
)
from glowserve_service.front.call import Call, current

Array = npt.NDArray[Any]
Rows = tuple[Array, ...]
"""Arrays with the same number of rows, the first axis."""

CANCELLED, DEADLINE = "cancelled", "deadline"
"""Why rows were dropped."""

# What the last batch says weighs this much in the averages of them all.
_NEWEST = 0.2
# Refused callers that came back sooner would only be refused again.
_LEAST_PAUSE_SECONDS = 0.05


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


@dataclass(eq=False)
class _Submission:
    """A caller's rows."""

    rows: Rows
    size: int
    arrived: float
    deadline: float
    answer: asyncio.Future[Rows]
    call: Call
    taken: int = 0
    """Rows that are in batches, the first ones."""
    results: list[tuple[int, Rows]] = field(default_factory=list)
    """Of batches that have run, each with its first row's index."""

    @property
    def waiting(self) -> int:
        return 0 if self.answer.done() else self.size - self.taken

    def take(self, most: int) -> _Part:
        """The next rows, for a batch that has room for `most`."""
        part = _Part(self, self.taken, min(most, self.size - self.taken))
        self.taken += part.size
        return part

    def add(self, first: int, rows: Rows) -> None:
        """Results, from a row on; those of the last batch are the answer."""
        if self.answer.done():
            return
        self.results.append((first, rows))
        if sum(len(rows[0]) for _, rows in self.results) == self.size:
            self.answer.set_result(_joined([rows for _, rows in sorted(self.results, key=lambda r: r[0])]))

    def fail(self, error: Exception) -> None:
        """Tells the caller, unless it is gone."""
        if not self.answer.done():
            self.answer.set_exception(error)


@dataclass(frozen=True)
class _Part:
    """Rows of a submission that go into one batch."""

    submission: _Submission
    first: int
    size: int

    @property
    def rows(self) -> Rows:
        return tuple(array[self.first : self.first + self.size] for array in self.submission.rows)


@dataclass
class _Pace:
    """How long batches take, as exponential averages; 0 until one has run."""

    row_seconds: float = 0.0
    batch_seconds: float = 0.0

    def add(self, rows: int, seconds: float) -> None:
        weight = _NEWEST if self.batch_seconds else 1.0
        self.row_seconds += weight * (seconds / rows - self.row_seconds)
        self.batch_seconds += weight * (seconds - self.batch_seconds)

    def seconds(self, rows: int, max_batch_size: int) -> float:
        """What rows take, one batch after another, at least.

        After small batches the time for a row is too long, after full ones the time for a batch: the shorter counts.
        """
        return min(rows * self.row_seconds, math.ceil(rows / max_batch_size) * self.batch_seconds)


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

    calls: tuple[Call, ...] = ()
    """The callers, in the order of `waited`."""

    padding: int = 0
    """Rows of zeros that it had besides."""


class Batcher:
    """A queue, and the task that makes batches of it.

    Args:
        function: from arrays of N rows to arrays of N rows; row i of the results depends on row i alone.
        workers: where it runs.
        max_batch_size: most rows in a batch.
        max_queue_size: most rows that wait; a call that would exceed it is refused.
        max_delay_seconds: how long rows may wait for company although a worker is free.
        buckets: sizes, ascending to `max_batch_size`, that batches are padded to with zeros; none: they are not.
        on_batch: told the number of rows of each batch, without padding, and why it is sent: "full", "delay" (its
            oldest rows have waited for company long enough) or "worker_free" (they need not wait for company).
        on_run: told of each batch that has run.
        on_drop: told why rows that had been taken in are not run, and how many.
    """

    def __init__(
        self,
        function: Callable[..., Rows],
        workers: Workers,
        *,
        max_batch_size: int,
        max_queue_size: int,
        max_delay_seconds: float = 0.0,
        buckets: Sequence[int] = (),
        on_batch: Callable[[int, str], None] = lambda _rows, _reason: None,
        on_run: Callable[[Run], None] = lambda _: None,
        on_drop: Callable[[str, int], None] = lambda _cause, _rows: None,
    ) -> None:
        self._function = function
        self._workers = workers
        self._max_batch_size = max_batch_size
        self._max_queue_size = max_queue_size
        self._max_delay_seconds = max_delay_seconds
        self._buckets = buckets
        self._on_batch = on_batch
        self._on_run = on_run
        self._on_drop = on_drop
        self._pace = _Pace()
        self._short: deque[_Submission] = deque()
        self._long: deque[_Submission] = deque()
        self._long_was_left_out = False
        self._arrival = asyncio.Event()
        self._running: set[asyncio.Task[None]] = set()
        self._closing = False
        self._dispatcher = asyncio.create_task(self._dispatch())

    @property
    def queue_length(self) -> int:
        """Rows that wait and whose caller still does. May be asked from any thread."""
        # Copies: the metrics are scraped while calls come and go.
        return sum(submission.waiting for submission in (*tuple(self._short), *tuple(self._long)))

    async def submit(
        self, *rows: Array, admitted: bool = False, long: bool = False, deadline: float = math.inf
    ) -> Rows:
        """Runs the function on a caller's rows, in as many batches as they need.

        Cancelling the call drops what has not begun.

        Args:
            rows: arrays with the same number of rows.
            admitted: whether they belong to a call of which other rows were accepted before; such are not refused,
                as their caller would lose what was done already.
            long: whether they are a part of more than a batch, and take turns as all of it would.
            deadline: when the answer is of no more use, on the clock of `time.monotonic`.

        Raises:
            QueueFullError: too much waits already; nothing was done.
            WaitTooLongError: they would still wait when the deadline passes; nothing was done.
            DeadlineError: it has passed; what had not begun was dropped.
            UnavailableError: the batcher is closing; nothing was done.
        """
        size, now = len(rows[0]), time.monotonic()
        long = long or size > self._max_batch_size
        if self._closing:
            raise UnavailableError("the server is stopping; try another")
        if deadline <= now:
            self._on_drop(DEADLINE, size)
            raise _late(size)
        if not admitted:
            self._admit(size, long, deadline - now)
        answer: asyncio.Future[Rows] = asyncio.get_running_loop().create_future()
        submission = _Submission(rows, size, now, deadline, answer, current())
        (self._long if long else self._short).append(submission)
        self._arrival.set()
        try:
            return await answer
        except asyncio.CancelledError:
            if answer.cancelled() and (left := size - submission.taken):
                # gRPC rounds a deadline up by as much as a hundredth to send it: the caller ends the call before.
                late = deadline - time.monotonic() <= 0.02 * (deadline - now) < math.inf
                self._on_drop(DEADLINE if late else CANCELLED, left)
            raise

    async def close(self) -> None:
        """Refuses new calls, and waits until the accepted ones are answered."""
        self._closing = True
        while self.queue_length or self._running:
            await asyncio.sleep(0.005)
        self._dispatcher.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._dispatcher

    def _admit(self, size: int, long: bool, left: float) -> None:
        """Refuses rows for which there is no room, or that would still wait when no seconds are left."""
        ahead = sum(submission.waiting for submission in self._short)
        waiting = ahead + sum(submission.waiting for submission in self._long)
        if (excess := waiting + size - self._max_queue_size) > 0:
            message = (
                f"{waiting} images wait already and {size} more exceed the queue's {self._max_queue_size}; "
                "try again later, with increasing pauses"
            )
            if pause := self._seconds(excess):
                raise QueueFullError(message, max(pause, _LEAST_PAUSE_SECONDS))
            raise QueueFullError(message)
        if long:  # of the other long ones, what is run in turn with these
            ahead += sum(min(submission.waiting, size) for submission in self._long)
        if (wait := self._seconds(ahead)) > left:
            raise WaitTooLongError(
                f"{ahead} images go before, which takes {wait:.3g} s, and the deadline is in {left:.3g} s; try again "
                "later, or allow more time",
                max(wait - left, _LEAST_PAUSE_SECONDS),
            )

    def _seconds(self, rows: int) -> float:
        """How long rows take, at least; 0 if nothing was measured."""
        return self._pace.seconds(rows, self._max_batch_size) / self._workers.instances

    async def _dispatch(self) -> None:
        while True:
            await self._arrival.wait()
            await self._wait_for_company()
            await self._workers.free.acquire()
            if batch := self._take():
                task = asyncio.create_task(self._execute(batch, self._reason(batch)))
                self._running.add(task)
                task.add_done_callback(self._running.discard)
                del batch  # its callers' requests would stay in memory until the next one
            else:
                self._workers.free.release()

    async def _wait_for_company(self) -> None:
        """Until a batch is full, or its oldest row has waited long enough."""
        while self._max_delay_seconds and 0 < self.queue_length < self._max_batch_size:
            oldest = min(each.arrived for each in (*self._short, *self._long) if each.waiting)
            age = time.monotonic() - oldest
            if age >= self._max_delay_seconds:
                return
            self._arrival.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._max_delay_seconds - age):
                    await self._arrival.wait()

    def _take(self) -> list[_Part]:
        """The next batch; what is not wanted any more is dropped."""
        batch: list[_Part] = []
        kept = 0
        if self._head(self._long) and self._long_was_left_out:
            kept = math.ceil(self._max_batch_size / 2)
        room = self._take_short(batch, self._max_batch_size - kept) + kept
        self._long_was_left_out = bool(self._long) and not room
        while room and (submission := self._head(self._long)):
            batch.append(submission.take(room))
            room -= batch[-1].size
            self._long.rotate(-1)  # the others' turn
        self._take_short(batch, room)
        if self._short or self._long:
            self._arrival.set()
        else:
            self._arrival.clear()
        return batch

    def _take_short(self, batch: list[_Part], room: int) -> int:
        """Adds the oldest short ones as long as they fit; returns the room that is left."""
        while (submission := self._head(self._short)) and submission.size <= room:
            batch.append(submission.take(room))
            room -= submission.size
        return room

    def _head(self, queue: deque[_Submission]) -> _Submission | None:
        """The first that waits; those before it that do not, or whose deadline has passed, leave the queue."""
        while queue:
            submission = queue[0]
            if submission.waiting and submission.deadline > time.monotonic():
                return submission
            if submission.waiting:
                self._on_drop(DEADLINE, submission.waiting)
                submission.fail(_late(submission.waiting))
            queue.popleft()
        return None

    def _reason(self, batch: Sequence[_Part]) -> str:
        """Why a batch that was just taken is sent."""
        if self._short or self._long or sum(part.size for part in batch) == self._max_batch_size:
            return "full"
        return "delay" if self._max_delay_seconds else "worker_free"

    async def _execute(self, batch: Sequence[_Part], reason: str) -> None:
        began = time.monotonic()
        size = sum(part.size for part in batch)
        try:
            rows = _joined([part.rows for part in batch], self._padded(size))
            joined = time.monotonic()
            self._on_batch(size, reason)
            results = await self._workers.run(self._function, rows)
        except Exception as error:
            for part in batch:
                part.submission.fail(error)
            return
        finally:
            self._workers.free.release()
        ran = time.monotonic()
        self._pace.add(size, ran - joined)
        first = 0
        for part in batch:
            part.submission.add(part.first, tuple(array[first : first + part.size] for array in results))
            first += part.size
        waited = tuple(began - part.submission.arrived for part in batch)
        calls = tuple(part.submission.call for part in batch)
        padding = len(rows[0]) - size
        self._on_run(Run(size, waited, joined - began, ran - joined, time.monotonic() - ran, calls, padding))

    def _padded(self, size: int) -> int:
        """The size of the smallest bucket that has room."""
        return next((bucket for bucket in self._buckets if bucket >= size), size)


def _late(size: int) -> DeadlineError:
    return DeadlineError(f"the deadline passed before {size} images were run; allow more time")


def _joined(parts: Sequence[Rows], size: int = 0) -> Rows:
    """The parts' rows one after the other, and zeros up to a size."""
    missing = size - sum(len(part[0]) for part in parts)
    if missing > 0:
        parts = [*parts, tuple(np.zeros((missing, *array.shape[1:]), array.dtype) for array in parts[0])]
    return (
        parts[0] if len(parts) == 1 else tuple(np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    )
