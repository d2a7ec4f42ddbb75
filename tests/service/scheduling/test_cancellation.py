"""Callers that cancel: their rows do not run, and other callers do not notice."""

from __future__ import annotations

import asyncio
import gc
import weakref

import numpy as np
import pytest
from glowserve_service.scheduling.workers import Workers

from tests.service.scheduling.batching import (
    PATIENCE,
    Doubling,
    answer_of,
    answers_of,
    ask,
    batching,
    end_of_cancelled,
    settle,
    until,
)


async def test_the_rows_of_a_caller_that_cancels_are_dropped_before_they_run() -> None:
    function = Doubling(shut=True)
    async with batching(function, max_queue_size=8) as batcher:
        running = ask(batcher, 1)
        await until(lambda: function.sizes == [1])
        stays, leaves, stays_too = ask(batcher, 2, 3), ask(batcher, 100, 101, 102), ask(batcher, 4, 5, 6)
        await until(lambda: batcher.queue_length == 8)
        await end_of_cancelled(leaves)
        assert batcher.queue_length == 5
        takes_its_place = ask(batcher, 7, 8, 9)
        await until(lambda: batcher.queue_length == 8)
        function.open()
        answers = await answers_of(running, stays, stays_too, takes_its_place)
        assert answers == [[2], [4, 6], [8, 10, 12], [14, 16, 18]]
    assert function.batches == [[1], [2, 3, 4, 5, 6, 7, 8, 9]]


async def test_a_caller_that_cancels_while_its_batch_runs_does_not_disturb_the_others_in_it() -> None:
    function = Doubling(shut=True)
    async with batching(function) as batcher:
        stays, leaves, stays_too = ask(batcher, 1, 2), ask(batcher, 3), ask(batcher, 4)
        await until(lambda: function.sizes == [4])
        await end_of_cancelled(leaves)
        function.open()
        assert await answers_of(stays, stays_too) == [[2, 4], [8]]


async def test_a_queue_of_cancelled_callers_alone_frees_the_worker() -> None:
    function = Doubling(shut=True)
    async with batching(function) as batcher:
        running, leaves = ask(batcher, 1), ask(batcher, 2)
        await until(lambda: function.sizes == [2])
        leaves_too = ask(batcher, 3)
        await until(lambda: batcher.queue_length == 1)
        leaves_too.cancel()
        leaves.cancel()
        function.open()
        assert await answer_of(running) == [2]
        await settle()  # the dispatcher finds no row that waits
        assert await answer_of(ask(batcher, 4)) == [8]
    assert function.batches == [[1, 2], [4]]


async def test_cancelling_a_large_submission_drops_the_rows_that_are_in_no_batch() -> None:
    function = Doubling(shut=True)
    async with batching(function) as batcher:
        large = ask(batcher, *range(100))
        await until(lambda: function.sizes == [8])
        await end_of_cancelled(large)
        assert batcher.queue_length == 0
        function.open()
        assert await answer_of(ask(batcher, 200)) == [400]
    assert function.batches == [list(range(8)), [200]]


async def test_callers_that_cancel_while_rows_wait_for_more_leave_nobody_waiting() -> None:
    function = Doubling()
    async with batching(function, max_delay_seconds=0.05) as batcher:
        for _ in range(5):
            leaves, stays = ask(batcher, 1, 2), ask(batcher, 3)
            await settle()
            assert batcher.queue_length == 3
            leaves.cancel()
            assert await answer_of(stays) == [6]
        alone = ask(batcher, 4)
        await settle()
        assert batcher.queue_length == 1
        alone.cancel()
        assert await answer_of(ask(batcher, 5)) == [10]
    assert function.batches == [[3], [3], [3], [3], [3], [5]]


async def test_closing_does_not_wait_for_callers_that_have_cancelled() -> None:
    function = Doubling()
    async with batching(function, max_delay_seconds=10 * PATIENCE) as batcher:
        task = ask(batcher, 1)
        await until(lambda: batcher.queue_length == 1)
        task.cancel()
    assert function.batches == []


@pytest.mark.parametrize("turns", range(12))
async def test_a_batcher_that_closes_while_it_forms_a_batch_of_cancelled_callers_keeps_no_worker(
    turns: int,
) -> None:
    workers = Workers(1)
    async with batching(Doubling(), workers=workers) as batcher:
        task = ask(batcher, 1)
        for _ in range(turns):  # of the event loop
            await asyncio.sleep(0)
        task.cancel()
        await batcher.close()
    assert workers.idle == 1
    workers.close()


async def test_the_rows_of_cancelled_callers_are_freed_while_batches_wait_for_more() -> None:
    function = Doubling()
    async with batching(function, max_delay_seconds=10 * PATIENCE) as batcher:
        rows = np.arange(3)
        known = weakref.ref(rows)
        task = asyncio.create_task(batcher.submit(rows))
        del rows
        await until(lambda: batcher.queue_length == 3)
        task.cancel()
        await until(task.done)
        del task

        def is_freed() -> bool:
            gc.collect()
            return known() is None

        await until(is_freed)
    assert function.batches == []
