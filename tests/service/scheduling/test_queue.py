"""The queue alone: which rows make the next batch."""

from __future__ import annotations

import asyncio
import math
import time
from typing import Any

import numpy as np
import pytest
from glowserve_service.errors import DeadlineError
from glowserve_service.scheduling.queue import RowQueue
from glowserve_service.scheduling.submission import Submission
from glowserve_service.scheduling.ticket import Ticket

from tests.growth import growth


class Queue(RowQueue):
    """A queue of numbers, which remembers how many rows were late. A row takes `row_seconds`."""

    def __init__(self, max_batch_size: int = 8, row_seconds: float = 0.0) -> None:
        self.late: list[int] = []
        super().__init__(max_batch_size, self.late.append, lambda rows: rows * row_seconds)

    def submit(self, rows: range, *, arrived: float = 0.0, **ticket: Any) -> Submission:
        answer = asyncio.get_running_loop().create_future()
        submission = Submission((np.array(rows),), len(rows), arrived, Ticket(**ticket), answer)
        self.add(submission)
        return submission

    def cancel(self, submission: Submission) -> None:
        """What the batcher does for a caller that has gone."""
        submission.answer.cancel()
        self.leave(submission)

    def next_batch(self) -> list[int]:
        return [number for part in self.take(self._max_batch_size) for number in part.rows[0].tolist()]

    def batches(self) -> list[list[int]]:
        """All batches, until no row waits."""
        return list(iter(self.next_batch, []))


async def test_short_submissions_are_joined_in_the_order_of_arrival() -> None:
    queue = Queue()
    for rows in (range(3), range(10, 11), range(20, 24)):
        queue.submit(rows)
    assert queue.batches() == [[0, 1, 2, 10, 20, 21, 22, 23]]
    assert queue.is_empty


async def test_a_short_submission_is_never_split_and_never_overtaken() -> None:
    queue = Queue()
    for first, size in ((0, 5), (10, 5), (20, 3)):
        queue.submit(range(first, first + size))
    assert queue.batches() == [[0, 1, 2, 3, 4], [10, 11, 12, 13, 14, 20, 21, 22]]


async def test_a_short_submission_behind_a_long_one_is_in_the_next_batch() -> None:
    queue = Queue(max_batch_size=32)
    queue.submit(range(256))
    batches = [queue.next_batch()]
    queue.submit(range(1000, 1001))
    batches.append(queue.next_batch())
    assert 1000 in batches[1]
    queue.submit(range(2000, 2003))
    batches.append(queue.next_batch())
    assert {2000, 2001, 2002} < set(batches[2])
    batches += queue.batches()
    assert [len(batch) for batch in batches] == [32] * 8 + [4]  # as few as there can be
    assert [row for batch in batches for row in batch if row < 1000] == list(range(256))


async def test_long_submissions_take_turns() -> None:
    queue = Queue()
    for first in (0, 100, 200):
        queue.submit(range(first, first + 32))
    assert [{row // 100 for row in batch} for batch in queue.batches()] == [{0}, {1}, {2}] * 4


async def test_parts_of_a_long_call_let_short_submissions_go_first() -> None:
    """As Sample submits them: a batch at a time, several at once."""
    queue = Queue()
    for first in range(0, 64, 8):
        queue.submit(range(first, first + 8), long=True)
    batches = [queue.next_batch()]
    queue.submit(range(1000, 1002))
    batches.append(queue.next_batch())
    assert {1000, 1001} < set(batches[1])
    batches += queue.batches()
    assert [len(batch) for batch in batches] == [8] * 8 + [2]
    assert sorted(row for batch in batches for row in batch) == [*range(64), 1000, 1001]


async def test_a_flood_of_short_submissions_does_not_starve_a_long_one() -> None:
    queue = Queue()
    for i in range(80):
        queue.submit(range(i, i + 1))
    batches = [queue.next_batch()]
    queue.submit(range(1000, 1016))
    batches += queue.batches()
    assert [sum(row >= 1000 for row in batch) for batch in batches] == [0, 0, 4, 0, 4, 0, 4, 0, 4, 0, 0, 0]
    assert [row for batch in batches for row in batch if row >= 1000] == list(range(1000, 1016))
    assert [row for batch in batches for row in batch if row < 1000] == list(range(80))


async def test_a_flood_of_short_submissions_does_not_starve_a_long_one_if_a_batch_has_a_single_row() -> None:
    queue = Queue(max_batch_size=1)
    for i in range(4):
        queue.submit(range(i, i + 1))
    queue.submit(range(1000, 1002))
    assert queue.batches() == [[0], [1000], [1], [1001], [2], [3]]


async def test_short_submissions_get_what_long_ones_leave_of_their_half() -> None:
    queue = Queue()
    for i in range(40):
        queue.submit(range(i, i + 1))
    batches = [queue.next_batch()]
    queue.submit(range(1000, 1001), long=True)
    batches += queue.batches()
    assert [len(batch) for batch in batches] == [8, 8, 8, 8, 8, 1]
    assert 1000 in batches[2]


async def test_a_long_submission_does_not_starve_short_ones_larger_than_half_a_batch() -> None:
    queue = Queue()
    queue.submit(range(80))
    batches = [queue.next_batch()]
    for first in (100, 200, 300):
        queue.submit(range(first, first + 7))
    batches += queue.batches()
    assert [sum(row >= 100 for row in batch) for batch in batches[1:4]] == [7, 7, 7]


@pytest.mark.parametrize("size", [1, 2, 3, 8])
async def test_every_row_runs_once_and_in_order_whatever_the_size_of_a_batch(
    size: int, rng: np.random.Generator
) -> None:
    queue = Queue(max_batch_size=size)
    ranges = [range(1000 * i, 1000 * i + int(rng.integers(1, 40))) for i in range(60)]
    batches = []
    for rows in ranges:
        queue.submit(rows, long=bool(rng.random() < 0.3))
        batches += [queue.next_batch()] if rng.random() < 0.5 else []
    batches += queue.batches()
    assert max(map(len, batches)) <= size
    for i, rows in enumerate(ranges):
        assert [row for batch in batches for row in batch if row // 1000 == i] == list(rows)


async def test_the_count_of_waiting_rows_is_their_sum_whatever_happens_to_submissions(
    rng: np.random.Generator,
) -> None:
    queue, submitted = Queue(), list[Submission]()
    for _ in range(500):
        deadline = time.monotonic() + rng.choice([-1.0, 60.0])
        submitted.append(
            queue.submit(range(int(rng.integers(1, 20))), long=bool(rng.random() < 0.3), deadline=deadline)
        )
        if rng.random() < 0.4:
            queue.cancel(rng.choice(np.array(submitted, dtype=object)))
        if rng.random() < 0.4:
            queue.next_batch()
        assert queue.waiting_rows == sum(submission.waiting for submission in submitted)
    queue.batches()
    assert queue.waiting_rows == 0
    late = [each.answer for each in submitted if each.answer.done() and not each.answer.cancelled()]
    assert {type(answer.exception()) for answer in late} == {DeadlineError}


async def test_cancelled_and_late_submissions_leave_the_queue_and_late_rows_are_counted_once() -> None:
    queue = Queue()
    cancelled, late, late_and_long, stays = (
        queue.submit(range(3)),
        queue.submit(range(10, 14), deadline=time.monotonic()),
        queue.submit(range(20, 50), deadline=time.monotonic()),
        queue.submit(range(60, 62)),
    )
    assert queue.waiting_rows == 39
    queue.cancel(cancelled)
    assert queue.waiting_rows == 36
    assert queue.batches() == [[60, 61]]
    assert queue.is_empty
    assert queue.late == [30, 4]
    for submission, rows in ((late, 4), (late_and_long, 30)):
        with pytest.raises(DeadlineError, match=f"before {rows} images have run; allow more time"):
            submission.answer.result()
    assert not stays.answer.done()


async def test_only_the_rows_that_wait_count_as_waiting_and_only_their_arrival_counts() -> None:
    queue = Queue()
    assert (queue.waiting_rows, queue.oldest_arrival(), queue.is_empty) == (0, math.inf, True)
    oldest = queue.submit(range(20), arrived=1.0)
    queue.submit(range(30, 33), arrived=2.0)
    queue.next_batch()  # 3 short rows and 5 long ones
    queue.submit(range(40, 42), arrived=3.0)
    assert (queue.waiting_rows, queue.oldest_arrival()) == (17, 1.0)
    queue.cancel(oldest)
    assert (queue.waiting_rows, queue.oldest_arrival()) == (2, 3.0)


async def test_rows_ahead_are_the_short_ones_and_for_a_long_submission_the_turns_of_others() -> None:
    queue = Queue()
    queue.submit(range(3))
    for _ in range(10):
        queue.submit(range(80))
    queue.submit(range(5), long=True)
    assert queue.rows_ahead(2, Ticket()) == 3
    assert queue.rows_ahead(10, Ticket()) == 3 + 10 * 10 + 5  # more than a batch: long by its size
    assert queue.rows_ahead(2, Ticket(long=True)) == 3 + 11 * 2


async def test_the_oldest_arrival_is_found_in_a_time_that_does_not_grow_with_the_short_submissions() -> None:
    def arrive(submissions: int) -> None:
        queue = Queue()
        for i in range(submissions):
            queue.submit(range(1), arrived=float(i))
            assert queue.oldest_arrival() == 0

    assert growth(arrive, 250, 8) < 16


async def test_rows_that_would_be_too_late_when_they_have_run_make_room_for_others() -> None:
    """If all ran to their end when more arrives than can run, all would be a little too late."""
    queue, now = Queue(row_seconds=10.0), time.monotonic()
    hopeless = queue.submit(range(3), deadline=now + 29.0)
    queue.submit(range(10, 13), deadline=now + 31.0)
    assert queue.next_batch() == [10, 11, 12]
    assert queue.late == [3]
    with pytest.raises(DeadlineError, match="the deadline passes before 3 images have run"):
        await hopeless.answer


async def test_rows_that_wait_alone_run_whatever_their_deadline() -> None:
    """How long rows take is learned from what runs."""
    queue = Queue(row_seconds=10.0)
    queue.submit(range(3), deadline=time.monotonic() + 5.0)
    assert queue.next_batch() == [0, 1, 2]
