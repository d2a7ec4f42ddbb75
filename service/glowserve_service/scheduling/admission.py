"""What a queue refuses at once, and how many rows a deadline can bear in a batch."""

from __future__ import annotations

import math

from glowserve_service.errors import QueueFullError, WaitTooLongError
from glowserve_service.scheduling.pace import Pace
from glowserve_service.scheduling.queue import RowQueue
from glowserve_service.scheduling.share import Share
from glowserve_service.scheduling.ticket import Ticket

# A refused caller that retried sooner would only be refused again.
_LEAST_PAUSE_SECONDS = 0.05

# A batch may take this part of the time that its first rows have left. Rows that arrive while it runs have to wait for
# it, then run in a batch of their own, and often have no more time than those had: half would leave them none to spare.
_PART_OF_TIME_LEFT = 0.25
# But always so long: smaller batches of short rows would make the queue longer, and all calls late.
_LEAST_SECONDS = 0.05
# And a batch may take so long while other models are in use, whose callers have to wait for it.
_MOST_SHARED_SECONDS = 0.25


class Admission:
    """Decides by how long rows took lately.

    Args:
        queue: where the rows wait.
        pace: how long they take.
        share: of the workers on which they run.
        max_batch_size: most rows in a batch.
        max_queue_size: most rows that wait.
    """

    def __init__(
        self, queue: RowQueue, pace: Pace, share: Share, *, max_batch_size: int, max_queue_size: int
    ) -> None:
        self._queue, self._pace = queue, pace
        self._share, self._workers = share, share.workers
        self._max_batch_size, self._max_queue_size = max_batch_size, max_queue_size

    def check(self, size: int, ticket: Ticket, left: float) -> None:
        """Raises an error unless rows may enter the queue.

        Args:
            size: how many they are.
            ticket: theirs.
            left: how soon their deadline is, in seconds.

        Raises:
            QueueFullError: too many rows wait already.
            WaitTooLongError: they would not have run when the deadline passes.
        """
        waiting = self._queue.waiting_rows
        if (excess := waiting + size - self._max_queue_size) > 0:
            raise self._queue_full(waiting, size, excess)
        # If it is in time even behind all waiting rows, their order does not matter.
        if left == math.inf or self._seconds_until(waiting, size, left) <= left:
            return
        ahead = self._queue.rows_ahead(size, ticket)
        if (seconds := self._seconds_until(ahead, size, left)) > left:
            raise WaitTooLongError(
                f"{ahead} images run first, and with other models' work the answer takes {seconds:.3g} s, but the "
                f"deadline is in {left:.3g} s; try again later, or allow more time",
                max(seconds - left, _LEAST_PAUSE_SECONDS),
            )

    def rows_within(self, left: float) -> int:
        """How many rows a batch may have whose head has so many seconds left."""
        seconds = max(_PART_OF_TIME_LEFT * left, _LEAST_SECONDS)
        if self._workers.others(self._share):
            seconds = min(seconds, _MOST_SHARED_SECONDS)
        return self._pace.rows_within(seconds, self._max_batch_size)

    def backlog(self) -> float:
        """The least time that the rows that wait take one worker, in seconds."""
        return self._pace.seconds(self._queue.waiting_rows, self._max_batch_size)

    def _queue_full(self, waiting: int, size: int, excess: int) -> QueueFullError:
        message = (
            f"{waiting} images wait already and {size} more exceed the queue's {self._max_queue_size}; "
            "try again later, with increasing pauses"
        )
        if pause := self._pace.seconds(excess, self._max_batch_size) / self._workers.instances:
            return QueueFullError(message, max(pause, _LEAST_PAUSE_SECONDS))
        return QueueFullError(message)

    def _seconds_until(self, ahead: int, size: int, left: float) -> float:
        """The least time until `size` new rows have run behind `ahead` others, in batches that their deadline can bear.

        0 if a worker is free for them: an estimate is renewed only if something runs.
        """
        if not ahead and self._workers.idle:
            return 0.0
        most = self.rows_within(left)
        last = min(size, most)
        first = self._pace.seconds(ahead + size - last, most)
        return self._share.seconds_until(first, self.backlog) + self._pace.seconds(last, most)
