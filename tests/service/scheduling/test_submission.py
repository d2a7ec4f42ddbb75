"""A caller's rows: taken in parts, answered as a whole."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from glowserve_service.scheduling.engine_threads import Rows
from glowserve_service.scheduling.submission import EXECUTION, QUEUE, StageTime, Submission, joined
from glowserve_service.scheduling.ticket import Ticket

TIMES = [(StageTime(QUEUE, 0, i), StageTime(EXECUTION, i, i + 1)) for i in range(2)]


@pytest.fixture
async def submission() -> Submission:
    """Ten rows of two arrays."""
    rows = np.arange(10), np.arange(20).reshape(10, 2)
    return Submission(rows, 10, 0.0, Ticket(), asyncio.get_running_loop().create_future())


def numbers(rows: Rows) -> list[list[int]]:
    return [array.tolist() for array in rows]


async def test_parts_are_the_next_rows_up_to_the_room_that_there_is(submission: Submission) -> None:
    parts = [submission.take(room) for room in (4, 1, 100)]
    assert [(part.first, part.size) for part in parts] == [(0, 4), (4, 1), (5, 5)]
    assert numbers(parts[1].rows) == [[4], [[8, 9]]]
    assert submission.waiting == 0


async def test_the_answer_is_complete_with_the_last_results_and_in_order(submission: Submission) -> None:
    first, second = submission.take(6), submission.take(4)
    submission.add(second.first, second.rows, TIMES[0])
    assert not submission.answer.done()
    submission.add(first.first, first.rows, TIMES[1])
    answer = submission.answer.result()
    assert numbers(answer.rows) == numbers(submission.rows)
    assert answer.times == [*TIMES[0], *TIMES[1]]


async def test_the_first_error_is_raised_and_later_errors_and_results_are_ignored(
    submission: Submission,
) -> None:
    parts = [submission.take(3) for _ in range(2)]
    submission.fail(ArithmeticError("first"))
    assert submission.waiting == 0
    submission.fail(ArithmeticError("second"))
    submission.add(parts[0].first, parts[0].rows, TIMES[0])
    with pytest.raises(ArithmeticError, match="first"):
        submission.answer.result()
    assert submission.results == []


async def test_errors_and_results_for_a_caller_that_cancelled_are_ignored(submission: Submission) -> None:
    part = submission.take(10)
    submission.answer.cancel()
    submission.fail(ArithmeticError())
    submission.add(part.first, part.rows, TIMES[0])
    assert submission.answer.cancelled()


def test_parts_are_joined_in_order_and_padded_with_zeros() -> None:
    parts = [(np.array([1, 2]), np.ones((2, 3), np.float32)), (np.array([3]), np.ones((1, 3), np.float32))]
    numbers, ones = joined(parts, 5)
    assert numbers.tolist() == [1, 2, 3, 0, 0]
    assert ones.dtype == np.float32
    assert ones.tolist() == 3 * [[1, 1, 1]] + 2 * [[0, 0, 0]]


def test_a_single_part_is_not_copied() -> None:
    part = (np.arange(3),)
    assert joined([part], 3) is part
