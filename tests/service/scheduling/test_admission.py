"""What the batcher refuses at once: rows for which the queue has no room, or too little time."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from glowserve_service.errors import DeadlineError, QueueFullError, UnavailableError, WaitTooLongError
from glowserve_service.scheduling.batcher import Batcher, BatchRun
from glowserve_service.scheduling.ticket import Ticket

from tests.service.scheduling.batching import (
    PATIENCE,
    Doubling,
    answer_of,
    answers_of,
    ask,
    batching,
    end_of_cancelled,
    soon,
    until,
    until_passed,
)


async def run_full_batches(batcher: Batcher, function: Doubling, seconds: float, times: int = 2) -> None:
    """Runs batches of 8 rows that take at least so long."""
    for _ in range(times):
        begun = len(function.batches)
        task = ask(batcher, *range(8))
        await until(lambda begun=begun: len(function.batches) > begun)  # type: ignore[misc]
        await asyncio.sleep(seconds)
        function.let_one_end()
        await answer_of(task)


async def refused(batcher: Batcher, rows: int) -> float:
    """The pause that a full queue asks for before a retry."""
    with pytest.raises(QueueFullError) as caught:
        await batcher.submit(np.arange(rows))
    return caught.value.retry_seconds


async def test_a_full_queue_refuses_rows_and_loses_none() -> None:
    function = Doubling(shut=True)
    async with batching(function, max_queue_size=10) as batcher:
        running = ask(batcher, 0)
        await until(lambda: function.sizes == [1])
        waiting = [ask(batcher, *range(first, first + 5)) for first in (10, 20)]
        await until(lambda: batcher.queue_length == 10)
        for size in (1, 9, 1000):
            with pytest.raises(QueueFullError, match=f"10 images wait already and {size} more"):
                await batcher.submit(np.zeros(size, np.int64))
        assert batcher.queue_length == 10
        function.open()
        assert await answers_of(running, *waiting) == [[0], [20, 22, 24, 26, 28], [40, 42, 44, 46, 48]]
        assert await answer_of(ask(batcher, 7)) == [14]
    assert sum(function.sizes) == 12


async def test_a_submission_larger_than_the_whole_queue_is_refused_whole() -> None:
    function = Doubling()
    async with batching(function, max_queue_size=20) as batcher:
        with pytest.raises(
            QueueFullError, match="0 images wait already and 21 more exceed the queue's 20; try again later"
        ):
            await batcher.submit(np.zeros(21, np.int64))
        assert len(await answer_of(ask(batcher, *range(20)))) == 20
    assert sum(function.sizes) == 20


async def test_a_full_queue_accepts_later_work_of_a_call_until_the_batcher_closes() -> None:
    function = Doubling(shut=True)
    async with batching(function, max_queue_size=8) as batcher:
        tasks = [ask(batcher, 0)]
        await until(lambda: function.sizes == [1])
        tasks.append(ask(batcher, *range(8)))
        await until(lambda: batcher.queue_length == 8)
        tasks.append(ask(batcher, *range(20), first=False))
        await until(lambda: batcher.queue_length == 28)
        with pytest.raises(QueueFullError, match="28 images wait already and 1 more exceed the queue's 8"):
            await batcher.submit(np.zeros(1, np.int64))
        function.open()
        assert [len(answer) for answer in await answers_of(*tasks)] == [1, 8, 20]
    with pytest.raises(UnavailableError, match="stopping"):
        await batcher.submit(np.arange(20), ticket=Ticket(first=False))


async def test_a_full_queue_says_how_long_it_takes_until_there_is_room() -> None:
    function, runs = Doubling(shut=True), list[BatchRun]()
    async with batching(function, max_queue_size=32, on_run=runs.append) as batcher:
        running = ask(batcher, *range(8))
        await until(lambda: len(function.batches) == 1)
        waiting = ask(batcher, *range(32))
        await until(lambda: batcher.queue_length == 32)
        assert await refused(batcher, 24) == 1.0  # nothing was measured
        await end_of_cancelled(waiting)
        function.let_one_end()
        await answer_of(running)
        await run_full_batches(batcher, function, 0.1)
        running = ask(batcher, *range(8))
        await until(lambda: len(function.batches) == 4)
        waiting = ask(batcher, *range(32))
        await until(lambda: batcher.queue_length == 32)
        seconds = [run.run_seconds for run in runs]
        assert len(seconds) == 3
        assert 3 * min(seconds) <= await refused(batcher, 24) <= 3 * max(seconds)
        assert min(seconds) <= await refused(batcher, 8) <= max(seconds)
        function.open()
        await answers_of(running, waiting)


async def test_workers_share_the_rows_that_wait() -> None:
    function, runs = Doubling(shut=True), list[BatchRun]()
    async with batching(function, instances=2, max_queue_size=32, on_run=runs.append) as batcher:
        await run_full_batches(batcher, function, 0.1)
        running = [ask(batcher, *range(8)) for _ in range(2)]
        await until(lambda: len(function.batches) == 4)
        waiting = ask(batcher, *range(32))
        await until(lambda: batcher.queue_length == 32)
        seconds = [run.run_seconds for run in runs]
        assert 3 * min(seconds) / 2 <= await refused(batcher, 24) <= 3 * max(seconds) / 2
        function.open()
        await answers_of(*running, waiting)


async def test_the_pause_before_a_retry_is_a_twentieth_of_a_second_at_least() -> None:
    function, runs = Doubling(shut=True), list[BatchRun]()
    async with batching(function, max_queue_size=32, on_run=runs.append) as batcher:
        function.let_one_end()
        await answer_of(ask(batcher, *range(8)))
        running = ask(batcher, 0)
        await until(lambda: len(function.batches) == 2)
        waiting = ask(batcher, *range(32))
        await until(lambda: batcher.queue_length == 32)
        assert await refused(batcher, 1) == max(0.05, runs[0].run_seconds / 8)
        function.open()
        await answers_of(running, waiting)


async def test_rows_that_would_still_wait_at_their_deadline_are_refused_at_once() -> None:
    function, dropped, runs = Doubling(shut=True), list[tuple[str, int]](), list[BatchRun]()
    async with batching(function, on_drop=lambda *drop: dropped.append(drop), on_run=runs.append) as batcher:
        await run_full_batches(batcher, function, 0.1)
        tasks = [ask(batcher, *range(8)) for _ in range(5)]
        await until(lambda: batcher.queue_length == 32)
        deadline = soon(0.2)
        with pytest.raises(
            WaitTooLongError, match=r"^32 images run first, .* the answer takes [\d.]+ s"
        ) as caught:
            await batcher.submit(np.arange(1), ticket=Ticket(deadline))
        # Four batches, the one that runs, and its own image, less what the caller would wait.
        seconds = [run.run_seconds for run in runs]
        assert caught.value.retry_seconds >= 4 * min(seconds) - 0.2
        assert caught.value.retry_seconds <= (4 + 1 + 1 / 8) * max(seconds) - (deadline - soon(0))
        assert batcher.queue_length == 32
        tasks.append(ask(batcher, 0))
        tasks.append(ask(batcher, 0, deadline=soon(PATIENCE)))
        await until(lambda: batcher.queue_length == 34)
        function.open()
        await answers_of(*tasks)
    assert dropped == []
    assert sum(function.sizes) == 16 + 42


async def test_later_work_is_accepted_although_it_would_still_wait_at_its_deadline() -> None:
    function = Doubling(shut=True)
    async with batching(function) as batcher:
        await run_full_batches(batcher, function, 0.5, times=1)
        tasks = [ask(batcher, *range(8)) for _ in range(5)]
        await until(lambda: batcher.queue_length == 32)
        tasks.append(ask(batcher, 1, deadline=soon(1), first=False))  # the others take two seconds
        await until(lambda: batcher.queue_length == 33)
        function.open()
        assert (await answers_of(*tasks))[-1] == [2]


async def test_while_nothing_was_measured_no_deadline_is_too_early() -> None:
    function = Doubling(shut=True)
    async with batching(function) as batcher:
        ahead = [ask(batcher, *range(8)) for _ in range(4)]
        await until(lambda: batcher.queue_length == 24)
        deadline = soon(0.2)
        tight = ask(batcher, 0, deadline=deadline)
        await until(lambda: batcher.queue_length == 25)
        await until_passed(deadline)
        function.open()
        with pytest.raises(DeadlineError):
            await answer_of(tight)
        await answers_of(*ahead)


async def test_an_idle_batcher_accepts_rows_whatever_their_deadline() -> None:
    function, runs = Doubling(shut=True), list[BatchRun]()
    async with batching(function, on_run=runs.append) as batcher:
        await run_full_batches(batcher, function, 0.5, times=1)
        tight = ask(batcher, 1, deadline=soon(0.8 * runs[0].run_seconds))
        await until(lambda: len(function.batches) == 2)
        function.open()
        assert await answer_of(tight) == [2]


async def test_only_the_rows_that_run_first_count_against_a_deadline() -> None:
    function, runs = Doubling(shut=True), list[BatchRun]()
    async with batching(function, on_run=runs.append) as batcher:
        await run_full_batches(batcher, function, 0.5, times=1)
        batch_seconds = runs[0].run_seconds
        large = [ask(batcher, *range(80)) for _ in range(10)]
        await until(lambda: batcher.queue_length == 792)  # 99 batches
        # A short call is in the next batch all the same.
        small = ask(batcher, 1, 2, 3, deadline=soon(2 * batch_seconds))
        # While a call of 10 rows has its turns, so do the others with 10 rows each: 13 batches.
        medium = ask(batcher, *range(10), deadline=soon(40 * batch_seconds))
        await until(lambda: batcher.queue_length == 805)
        with pytest.raises(WaitTooLongError, match=r"^113 images run first"):
            await batcher.submit(np.arange(10), ticket=Ticket(soon(5 * batch_seconds), long=True))
        function.open()
        await answers_of(*large, small, medium)
