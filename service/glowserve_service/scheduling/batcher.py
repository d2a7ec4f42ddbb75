"""Joins the rows of concurrent callers into batches.

A batch is formed when a worker is free to run it, of the rows that wait and of those that the event loop is about to
bring. While all workers are busy, rows gather in the queue. So a lone caller never waits, and batches grow with the
load. `queue.py` says which rows go first.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from glowserve_service.errors import UnavailableError
from glowserve_service.scheduling.admission import Admission
from glowserve_service.scheduling.deadlines import deadline_passed, is_late
from glowserve_service.scheduling.engine_threads import Array, Rows
from glowserve_service.scheduling.pace import Pace
from glowserve_service.scheduling.queue import RowQueue
from glowserve_service.scheduling.share import Share, Worker
from glowserve_service.scheduling.submission import (
    EXECUTION,
    QUEUE,
    Answer,
    Part,
    StageTime,
    Submission,
    joined,
)
from glowserve_service.scheduling.ticket import DEFAULT_TICKET, Ticket

CANCELLED, DEADLINE = "cancelled", "deadline"
"""Why rows were dropped."""

# A call takes a few turns of the event loop from its arrival to the queue. A batch is formed after so many turns that
# bring no row: one of a single row takes as much processor time as one of many, and an idle turn next to none.
_IDLE_TURNS, _MOST_TURNS = 4, 16
# Rows that take one core longer are better shared among the workers at once.
_SHORT_ROW_SECONDS = 0.001

# Rows that take one core less wait until the batch that runs ends, but no longer than the second of these times.
_LEAST_BESIDE_SECONDS, _MOST_BESIDE_SECONDS = 0.001, 0.005

# A batch that takes one core less gains too little from other cores to wake them up.
_WIDE_SECONDS = 0.002


@dataclass(frozen=True)
class BatchRun:
    """A batch that has run."""

    rows: int
    """Without padding."""

    waited: tuple[float, ...]
    """How long each submission's part of the batch was in the queue, in seconds."""

    join_seconds: float
    run_seconds: float
    split_seconds: float
    """How long it took to join the submissions' rows, to run them, and to split the results."""

    padding: int = 0
    """Rows of zeros that were added."""


class Batcher:
    """A queue, and the task that makes batches of it.

    Args:
        function: from arrays of N rows to arrays of N rows; row i of the results depends on row i alone.
        share: of the workers on which it runs.
        widens: whether the function takes `wide=True`, and then uses all cores. A batch runs so if nothing else runs or
            waits, and one core would take long.
        max_batch_size: most rows in a batch.
        max_queue_size: most rows that wait; a call that would exceed it is refused.
        max_delay_seconds: how long rows may wait for more although a worker is free.
        buckets: sizes, ascending to `max_batch_size`, that batches are padded to with zeros; none: no padding.
        on_batch: called when a batch is dispatched, with its rows, without padding, and the reason: "full", "delay"
            (its oldest rows have waited `max_delay_seconds`) or "worker_free" (rows do not wait for more).
        on_run: called when a batch has run.
        on_drop: called with CANCELLED or DEADLINE, and the number of rows that will not run because of it.
    """

    def __init__(
        self,
        function: Callable[..., Rows],
        share: Share,
        *,
        widens: bool = False,
        max_batch_size: int,
        max_queue_size: int,
        max_delay_seconds: float = 0.0,
        buckets: Sequence[int] = (),
        on_batch: Callable[[int, str], None] = lambda _rows, _reason: None,
        on_run: Callable[[BatchRun], None] = lambda _: None,
        on_drop: Callable[[str, int], None] = lambda _cause, _rows: None,
    ) -> None:
        self._function = function
        self._share, self._workers = share, share.workers
        self._wide_function = partial(function, wide=True) if widens else None
        self._max_batch_size = max_batch_size
        self._max_delay_seconds = max_delay_seconds
        self._buckets = buckets
        self._on_batch = on_batch
        self._on_run = on_run
        self._on_drop = on_drop
        self._pace = pace = Pace()
        self._queue = RowQueue(
            max_batch_size,
            lambda rows: on_drop(DEADLINE, rows),
            # Without `self`: the cycle would keep a closed model's engine in memory for a while.
            lambda rows: pace.seconds(min(rows, max_batch_size), max_batch_size),
        )
        self._admission = Admission(
            self._queue, self._pace, share, max_batch_size=max_batch_size, max_queue_size=max_queue_size
        )
        self._arrival = asyncio.Event()
        self._last_size = 0
        self._running: set[asyncio.Task[None]] = set()
        self._unanswered = 0
        self._answered = asyncio.Event()
        self._closing = False
        share.backlogs.append(self._admission.backlog)
        self._dispatcher = asyncio.create_task(self._dispatch())

    @property
    def queue_length(self) -> int:
        """Rows that wait, without those of cancelled calls. From any thread."""
        return self._queue.waiting_rows

    async def submit(self, *rows: Array, ticket: Ticket = DEFAULT_TICKET) -> Answer:
        """Runs the function on a caller's rows, in as many batches as they need.

        Cancelling the call drops the rows that are in no batch yet.

        Args:
            rows: arrays with the same number of rows.
            ticket: their deadline, and what else decides when they run.

        Raises:
            QueueFullError: too many rows wait already; nothing was done.
            WaitTooLongError: they would still wait when the deadline passes; nothing was done.
            DeadlineError: it has passed; rows that were in no batch yet were dropped.
            UnavailableError: the batcher is closing; nothing was done.
        """
        if ticket.gate and not ticket.first:
            await ticket.gate.wait()
        size, now = len(rows[0]), time.monotonic()
        self._admit(size, ticket, now)
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        submission = Submission(rows, size, now, ticket, answer)
        self._queue.add(submission)
        self._arrival.set()
        if ticket.gate:
            ticket.gate.open()
        self._unanswered += 1
        try:
            return await answer
        except asyncio.CancelledError:
            if (left := self._queue.leave(submission)) and answer.cancelled():
                self._on_drop(DEADLINE if is_late(ticket.deadline, now) else CANCELLED, left)
                self._arrival.set()  # if nobody else waits, the dispatcher removes it from the queue
            raise
        finally:
            self._unanswered -= 1
            self._answered.set()

    async def close(self) -> None:
        """Refuses new calls, and waits until the accepted ones are answered and nothing runs."""
        self._closing = True
        while self._unanswered:
            self._answered.clear()
            await self._answered.wait()
        while self._running:
            await asyncio.wait(self._running)
        self._dispatcher.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._dispatcher
        if self._admission.backlog in self._share.backlogs:
            self._share.backlogs.remove(self._admission.backlog)

    def _admit(self, size: int, ticket: Ticket, now: float) -> None:
        """Raises an error unless rows may enter the queue."""
        if self._closing:
            raise UnavailableError("the server is stopping; try another")
        left = ticket.deadline - now
        if left <= 0:
            self._on_drop(DEADLINE, size)
            raise deadline_passed(size)
        if ticket.first:
            self._admission.check(size, ticket, left)

    async def _dispatch(self) -> None:
        while True:
            await self._arrival.wait()
            await self._wait_for_more()
            await self._wait_for_run()
            worker = await self._share.acquire()
            try:
                await self._gather()
            except asyncio.CancelledError:  # the batcher is closed
                self._share.release(worker, ran=False)
                raise
            batch = self._queue.take(self._most_rows())
            if self._queue.is_empty:
                self._arrival.clear()
            else:
                self._arrival.set()
            if batch:
                task = asyncio.create_task(self._execute(batch, self._reason(batch), worker))
                self._running.add(task)
                task.add_done_callback(self._end)
                del batch  # would keep the callers' requests in memory until the next batch
            else:
                self._share.release(worker, ran=False)

    async def _wait_for_more(self) -> None:
        """Returns when a batch is full, or its oldest row has waited long enough.

        It does not return while no row waits: rows that arrived until a worker is free would make a small batch.
        """
        while self._max_delay_seconds and self.queue_length < self._max_batch_size:
            left = self._queue.oldest_arrival() + self._max_delay_seconds - time.monotonic()
            if left <= 0:
                return
            if math.isinf(left):  # no row waits
                self._queue.head()  # removes the submissions that are cancelled
            self._arrival.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(None if math.isinf(left) else left):
                    await self._arrival.wait()

    async def _wait_for_run(self) -> None:
        """Returns when no batch runs, or the rows that wait are worth another core beside it.

        A batch of a few short rows takes nearly as much processor time as one of twice as many.
        """
        if not self._running:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_MOST_BESIDE_SECONDS):
                while self._running and not self._is_worth_a_core():
                    self._arrival.clear()
                    await self._arrival.wait()

    def _is_worth_a_core(self) -> bool:
        rows = self.queue_length
        return rows >= self._max_batch_size or rows * self._pace.own_row_seconds >= _LEAST_BESIDE_SECONDS

    def _end(self, run: asyncio.Task[None]) -> None:
        self._running.discard(run)
        if not self._queue.is_empty:
            self._arrival.set()

    async def _gather(self) -> None:
        """Returns when the event loop brings no more rows, or enough for a batch.

        It returns at once if rows take long, and if a row is alone as the last one was: a lone caller waits for nobody.
        """
        if self._pace.own_row_seconds > _SHORT_ROW_SECONDS or self._last_size == self._queue.length == 1:
            return
        idle = 0
        for _ in range(_MOST_TURNS):
            before = self._queue.length
            if idle == _IDLE_TURNS or before >= self._max_batch_size:
                return
            await asyncio.sleep(0)
            idle = 0 if self._queue.length > before else idle + 1

    def _most_rows(self) -> int:
        """How many rows the next batch may have, so that its head is in time, and other models have their turns."""
        if (head := self._queue.head()) is None:
            return self._max_batch_size
        return self._admission.rows_within(head.ticket.deadline - time.monotonic())

    def _reason(self, batch: Sequence[Part]) -> str:
        """Why a batch that was just taken is dispatched."""
        if not self._queue.is_empty or sum(part.size for part in batch) == self._max_batch_size:
            return "full"
        return "delay" if self._max_delay_seconds else "worker_free"

    async def _execute(self, batch: Sequence[Part], reason: str, worker: Worker) -> None:
        """Runs a batch, and releases its worker."""
        began = time.monotonic()
        size = sum(part.size for part in batch)
        self._last_size = size
        try:
            rows = joined([part.rows for part in batch], self._padded(size))
            ready = time.monotonic()
            self._on_batch(size, reason)
            worker.expected_seconds = self._pace.seconds(size, self._max_batch_size)
            function = self._function_for(size)
            run = await self._workers.run(function, rows)
        except Exception as error:
            for part in batch:
                part.submission.fail(error)
                self._queue.leave(part.submission)
            return
        finally:
            self._share.release(worker)
        ran = time.monotonic()
        if function is self._function:
            self._pace.add(size, ran - ready, run.own_seconds)
        _split(run.rows, batch, began, StageTime(EXECUTION, ready, ran))
        waited = tuple(began - part.submission.arrived for part in batch)
        padding = len(rows[0]) - size
        self._on_run(BatchRun(size, waited, ready - began, ran - ready, time.monotonic() - ran, padding))

    def _function_for(self, size: int) -> Callable[..., Rows]:
        """What runs a batch of so many rows, which has its worker."""
        worth_it = self._pace.own_row_seconds * size >= _WIDE_SECONDS
        if self._wide_function and worth_it and self._queue.is_empty and self._workers.is_alone(self._share):
            return self._wide_function
        return self._function

    def _padded(self, size: int) -> int:
        """The size of the smallest bucket that has room."""
        return next((bucket for bucket in self._buckets if bucket >= size), size)


def _split(results: Rows, batch: Sequence[Part], began: float, execution: StageTime) -> None:
    """Adds a batch's results, and its times, to its submissions."""
    first = 0
    for part in batch:
        rows = tuple(array[first : first + part.size] for array in results)
        times = (StageTime(QUEUE, part.submission.arrived, began), execution)
        part.submission.add(part.first, rows, times)
        first += part.size
