"""The rows that wait, and which of them make the next batch.

A submission that fits into a batch is short, unless its ticket says that it is a part of a long call. Short submissions
are never split, and go first, in the order of arrival. Long ones fill the rest of each batch, in turns. When short ones
fill a whole batch, half of the next is kept for the long ones. So neither kind starves the other.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable

from glowserve_service.scheduling.deadlines import deadline_passed
from glowserve_service.scheduling.submission import Part, Submission
from glowserve_service.scheduling.ticket import Ticket


class RowQueue:
    """Submissions in the order in which they run.

    Args:
        max_batch_size: most rows in a batch.
        on_late: called with the number of rows that are dropped because of their deadline.
        seconds: how long a batch with so many rows takes.
    """

    def __init__(
        self,
        max_batch_size: int,
        on_late: Callable[[int], None],
        seconds: Callable[[int], float] = lambda _: 0.0,
    ) -> None:
        self._max_batch_size = max_batch_size
        self._on_late = on_late
        self._seconds = seconds
        self._short: deque[Submission] = deque()
        self._long: deque[Submission] = deque()
        # Counted, not added up: a thousand calls would each look at a thousand others.
        self._short_rows = self._long_rows = 0
        self._long_was_left_out = False

    @property
    def length(self) -> int:
        """How many submissions it holds, cancelled and late ones included."""
        return len(self._short) + len(self._long)

    @property
    def is_empty(self) -> bool:
        """Whether it holds no submission at all, not even a cancelled or late one."""
        return not (self._short or self._long)

    @property
    def waiting_rows(self) -> int:
        """Rows that wait, without those of cancelled calls. From any thread."""
        return self._short_rows + self._long_rows

    def add(self, submission: Submission) -> None:
        """Puts a submission behind the others of its kind, short or long."""
        (self._long if self._is_long(submission.size, submission.ticket) else self._short).append(submission)
        self._count(submission, submission.size)

    def leave(self, submission: Submission) -> int:
        """Nobody waits any more for the rows of a submission that are in no batch; returns how many these are."""
        left = submission.drop()
        self._count(submission, -left)
        return left

    def rows_ahead(self, size: int, ticket: Ticket) -> int:
        """How many rows run before the last of `size` new ones."""
        if self._is_long(size, ticket):  # the other long ones take turns with them
            return self._short_rows + sum(min(submission.waiting, size) for submission in self._long)
        return self._short_rows

    def oldest_arrival(self) -> float:
        """When the oldest row that waits arrived; infinity if none waits."""
        # Short ones keep the order of arrival. To look at each, at each arrival, would take quadratic time.
        short = next((each.arrived for each in self._short if each.waiting), math.inf)
        return min([short, *(each.arrived for each in self._long if each.waiting)])

    def head(self) -> Submission | None:
        """The submission that goes first; None if no row waits. Removes the cancelled and late ones before it."""
        return self._head(self._short) or self._head(self._long)

    def take(self, most: int) -> list[Part]:
        """The next batch; empty if no row waits. Removes the cancelled and late submissions that it comes across.

        Args:
            most: rows in the batch; a head that cannot be split is taken even if it has more.
        """
        batch: list[Part] = []
        kept = 0
        if self._head(self._long) and self._long_was_left_out:
            kept = math.ceil(most / 2)
        elif head := self._head(self._short):
            most = max(most, head.size)
        room = self._take_short(batch, most - kept) + kept
        self._long_was_left_out = bool(self._long) and not room
        while room and (submission := self._head(self._long)):
            batch.append(self._part(submission, room))
            room -= batch[-1].size
            self._long.rotate(-1)  # the next turn is the next submission's
        self._take_short(batch, room)  # what the long ones left of the half
        return batch

    def _is_long(self, size: int, ticket: Ticket) -> bool:
        return ticket.long or size > self._max_batch_size

    def _count(self, submission: Submission, rows: int) -> None:
        """Adds to the rows that wait."""
        if self._is_long(submission.size, submission.ticket):
            self._long_rows += rows
        else:
            self._short_rows += rows

    def _part(self, submission: Submission, room: int) -> Part:
        """The next rows of a submission, which wait no more."""
        part = submission.take(room)
        self._count(submission, -part.size)
        return part

    def _take_short(self, batch: list[Part], room: int) -> int:
        """Adds the oldest short submissions as long as they fit; returns the room that is left."""
        while (submission := self._head(self._short)) and submission.size <= room:
            batch.append(self._part(submission, room))
            room -= submission.size
        return room

    def _head(self, queue: deque[Submission]) -> Submission | None:
        """The first submission that waits and is not late. Removes those before it, and counts the late ones."""
        while queue:
            submission = queue[0]
            if submission.waiting and not self._is_late(submission, alone=len(queue) == 1):
                return submission
            if submission.waiting:
                late = self.leave(submission)
                self._on_late(late)
                submission.fail(deadline_passed(late))
            queue.popleft()
        return None

    def _is_late(self, submission: Submission, *, alone: bool) -> bool:
        """Whether its deadline has passed, or will have when it has run.

        If more arrives than can run, and all of it ran to its end, all of it would be a little too late. One that is
        alone runs in any case, since how long rows take is learned from what runs.
        """
        deadline = submission.ticket.deadline
        if deadline == math.inf:
            return False
        return deadline - time.monotonic() <= (0.0 if alone else self._seconds(submission.waiting))
