"""A model's share of the workers: what it has used, what it runs, and who waits for a worker on its behalf."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from glowserve_service.scheduling.workers import Workers

# The weight of the newest batch in the average.
_NEWEST = 0.2


class Worker:
    """A worker that a share has acquired.

    Args:
        began: when, on the clock of `time.monotonic`.
    """

    def __init__(self, began: float) -> None:
        self.began = began
        self.expected_seconds = 0.0
        """How long its batch will take, as far as is known."""


class Share:
    """A model's share; made by `Workers.share`. For the event loop's thread alone.

    Args:
        workers: that it is a share of.
    """

    def __init__(self, workers: Workers) -> None:
        self.workers = workers
        self.used = 0.0
        """The time for which workers have run its batches, or were kept for it, in seconds. A share that was idle
        begins where the others are."""
        self.batch_seconds = 0.0
        """How long its batches take on average; 0 until one has run."""
        self.ended = -math.inf
        """When its last batch ended."""
        self.backlogs: list[Callable[[], float]] = []
        """For each of its queues, how long the rows that wait there take one worker, in seconds."""
        self._waiting: deque[asyncio.Future[Worker]] = deque()
        self._running: set[Worker] = set()

    @property
    def waits(self) -> bool:
        """Whether it waits for a worker."""
        while self._waiting and self._waiting[0].cancelled():
            self._waiting.popleft()
        return bool(self._waiting)

    @property
    def is_busy(self) -> bool:
        """Whether it waits for a worker, or has one."""
        return self.waits or bool(self._running)

    def used_by(self, now: float) -> float:
        """`used`, and the time for which its batches have run until now."""
        return self.used + sum(now - worker.began for worker in self._running)

    async def acquire(self) -> Worker:
        """Waits for a worker."""
        if not self.is_busy:
            self.workers.wake(self)
        future: asyncio.Future[Worker] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        self.workers.grant()
        try:
            return await future
        except asyncio.CancelledError:
            if not future.cancelled():
                self.release(future.result(), ran=False)
            raise

    def start(self, now: float) -> None:
        """Gives a worker to the one that has waited longest. For `Workers` alone, while the share waits."""
        worker = Worker(now)
        self._running.add(worker)
        self._waiting.popleft().set_result(worker)

    def release(self, worker: Worker, *, ran: bool = True) -> None:
        """Gives a worker back, which has run a batch or not."""
        now = time.monotonic()
        self._running.remove(worker)
        if ran:
            seconds, self.ended = now - worker.began, now
            self.used += seconds
            self.batch_seconds += (_NEWEST if self.batch_seconds else 1.0) * (seconds - self.batch_seconds)
        self.workers.idle += 1
        self.workers.grant()

    def seconds_until(self, seconds: float, queue: Callable[[], float]) -> float:
        """How soon the workers have done so many seconds of the work in one of its queues, beside all other work.

        Each other model, and each other queue of this one, gets as much time in the meantime, if it has so much work.
        """
        others = self.workers.others(self)
        own = seconds + self._waiting_seconds(seconds, queue)
        running = sum(share._running_seconds() for share in (self, *others))
        waiting = sum(min(own, share._waiting_seconds(own)) for share in others)
        return (running + own + waiting) / self.workers.instances

    def _running_seconds(self) -> float:
        """How long its batches that run still take, at least."""
        now = time.monotonic()
        return sum(max(0.0, each.began + each.expected_seconds - now) for each in self._running)

    def _waiting_seconds(self, most: float, without: Callable[[], float] | None = None) -> float:
        """How long the rows in its queues take one worker, `most` of each queue, without one of the queues."""
        return sum(min(most, queue()) for queue in self.backlogs if queue != without)
