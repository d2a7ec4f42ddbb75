"""The batcher: joins the rows of callers, runs them, and gives each caller its results."""

from __future__ import annotations

import asyncio
import gc
import math
import sys
import threading
import time
import weakref
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from glowserve_service.errors import UnavailableError
from glowserve_service.scheduling import batcher as batcher_module
from glowserve_service.scheduling.batcher import Batcher, BatchRun
from glowserve_service.scheduling.engine_threads import Rows
from glowserve_service.scheduling.submission import EXECUTION, QUEUE
from glowserve_service.scheduling.ticket import Ticket

from glowserve.runtime.config import bucket_sizes
from tests.service.scheduling.batching import (
    PATIENCE,
    Array,
    Doubling,
    answer_of,
    answers_of,
    ask,
    batching,
    settle,
    until,
)

# Joining and splitting.


@pytest.mark.parametrize("max_delay_seconds", [0.0, 0.002])
@pytest.mark.parametrize("instances", [1, 3])
async def test_every_caller_gets_the_results_of_its_own_rows(
    instances: int, max_delay_seconds: float, rng: np.random.Generator
) -> None:
    batches, dispatched = list[Array](), list[int]()
    durations = iter(rng.uniform(0, 0.002, 10_000).tolist())

    def function(numbers: Array, pairs: Array) -> Rows:
        batches.append(numbers)
        time.sleep(next(durations))
        return numbers * 2, pairs[:, ::-1], numbers.astype(np.float32)

    async def call(batcher: Batcher, first: int, size: int) -> None:
        await asyncio.sleep(float(rng.uniform(0, 0.05)))
        numbers, ticket = np.arange(first, first + size), Ticket(long=bool(rng.random() < 0.3))
        answer = await batcher.submit(numbers, np.stack([numbers, -numbers], axis=1), ticket=ticket)
        doubled, swapped, floats = answer.rows
        np.testing.assert_array_equal(doubled, numbers * 2)
        np.testing.assert_array_equal(swapped, np.stack([-numbers, numbers], axis=1))
        np.testing.assert_array_equal(floats, numbers)
        assert floats.dtype == np.float32

    async with batching(
        function,
        instances=instances,
        max_delay_seconds=max_delay_seconds,
        on_batch=lambda rows, _: dispatched.append(rows),
    ) as batcher:
        sizes = rng.integers(1, 21, 200).tolist()
        firsts = np.cumsum([0, *sizes]).tolist()
        calls = [call(batcher, first, size) for first, size in zip(firsts, sizes, strict=False)]
        await asyncio.wait_for(asyncio.gather(*calls), PATIENCE)
    assert sorted(np.concatenate(batches).tolist()) == list(range(sum(sizes)))
    assert max(map(len, batches)) <= 8
    assert Counter(dispatched) == Counter(map(len, batches))


async def test_rows_that_arrive_while_the_worker_is_busy_are_joined() -> None:
    function = Doubling(shut=True)
    async with batching(function) as batcher:
        tasks = [ask(batcher, 1)]
        await until(lambda: function.sizes == [1])
        tasks += [ask(batcher, 2, 3), ask(batcher, 4), ask(batcher, 5, 6, 7)]
        await until(lambda: batcher.queue_length == 6)
        function.open()
        assert await answers_of(*tasks) == [[2], [4, 6], [8], [10, 12, 14]]
    assert function.batches == [[1], [2, 3, 4, 5, 6, 7]]


async def test_no_batch_is_larger_than_the_largest_size() -> None:
    function = Doubling(shut=True)
    async with batching(function) as batcher:
        tasks = [ask(batcher, 0)]
        await until(lambda: function.sizes == [1])
        tasks += [ask(batcher, *range(5)), ask(batcher, *range(5)), ask(batcher, *range(3))]
        await until(lambda: batcher.queue_length == 13)
        function.open()
        await answers_of(*tasks)
    assert function.sizes == [1, 5, 8]


@pytest.mark.parametrize("instances", [1, 2])
async def test_a_large_submission_is_split_and_joined_in_order(instances: int) -> None:
    function = Doubling()
    async with batching(function, instances=instances) as batcher:
        assert await answer_of(ask(batcher, *range(100))) == [2 * i for i in range(100)]
    assert sorted(function.sizes) == [4] + 12 * [8]


async def test_a_small_call_behind_a_large_one_is_in_the_next_batch() -> None:
    function = Doubling(shut=True)
    async with batching(function) as batcher:
        large = ask(batcher, *range(64))
        await until(lambda: len(function.batches) == 1)
        small = ask(batcher, 1000)
        await until(lambda: batcher.queue_length == 57)
        await function.step()
        assert 1000 in function.batches[1]
        await function.step()
        assert await answer_of(small) == [2000]
        assert not large.done()
        function.open()
        assert await answer_of(large) == [2 * i for i in range(64)]
    assert function.sizes == [8] * 8 + [1]


async def test_an_answer_has_the_times_of_every_batch_that_its_rows_were_in() -> None:
    function, runs, began = Doubling(shut=True), list[BatchRun](), time.monotonic()
    async with batching(function, on_run=runs.append) as batcher:
        large, small = ask(batcher, *range(12)), ask(batcher, 20, 21)
        await until(lambda: len(function.batches) == 1)
        function.open()
        times = {task: (await asyncio.wait_for(task, PATIENCE)).times for task in (large, small)}
    assert [stage for stage, *_ in times[large]] == [QUEUE, EXECUTION] * 2
    assert times[small][1] in times[large]  # they were in the first batch together
    assert [(run.rows, len(run.waited)) for run in runs] == [(8, 2), (6, 1)]
    for run, queue, execution in zip(runs, times[large][::2], times[large][1::2], strict=True):
        assert began <= queue.began <= queue.ended <= execution.began <= execution.ended
        assert queue.ended - queue.began in run.waited
        assert execution.ended - execution.began == run.run_seconds
        assert execution.began - queue.ended == run.join_seconds
        assert run.split_seconds >= 0


async def test_batches_are_padded_to_a_bucket_and_callers_get_their_own_rows() -> None:
    shapes: list[tuple[tuple[int, ...], ...]] = []

    def function(numbers: Array, pairs: Array) -> Rows:
        shapes.append((numbers.shape, pairs.shape))
        assert pairs.dtype == np.float32
        return numbers * 2, pairs

    dispatched, runs = list[int](), list[BatchRun]()
    async with batching(
        function,
        max_batch_size=12,
        buckets=bucket_sizes(12),
        on_batch=lambda rows, _: dispatched.append(rows),
        on_run=runs.append,
    ) as batcher:
        for size in (1, 3, 4, 5, 9, 12, 29):
            numbers = np.arange(size) + 1
            pairs = np.ones((size, 2), np.float32)
            answer = await batcher.submit(numbers, pairs)
            np.testing.assert_array_equal(answer.rows[0], numbers * 2)
            np.testing.assert_array_equal(answer.rows[1], pairs)
    sizes, padding = [1, 3, 4, 5, 9, 12, 12, 12, 5], [0, 1, 0, 3, 3, 0, 0, 0, 3]
    assert dispatched == sizes
    assert [(run.rows, run.padding) for run in runs] == list(zip(sizes, padding, strict=True))
    assert shapes == [((n,), (n, 2)) for n in (1, 4, 4, 8, 12, 12, 12, 12, 8)]


async def test_a_lone_caller_does_not_wait_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        batcher_module, "_SHORT_ROW_SECONDS", math.inf
    )  # rows are short, however slow the machine is
    begun = list[int]()
    async with batching(Doubling(), on_batch=lambda rows, _reason: begun.append(rows)) as batcher:

        async def turns_until_it_runs(callers: int) -> int:
            """Of the event loop."""
            batches, turns = len(begun), 0
            calls = [ask(batcher, caller) for caller in range(callers)]
            while len(begun) == batches:
                await asyncio.sleep(0)
                turns += 1
            await answers_of(*calls)
            return turns

        first = await turns_until_it_runs(1)
        lone = await turns_until_it_runs(1)
        pair = await turns_until_it_runs(2)
        after_a_pair = await turns_until_it_runs(1)
    assert begun == [1, 1, 2, 1]
    assert (first, lone, after_a_pair) == (pair, pair - batcher_module._IDLE_TURNS, pair)


# The delay.


async def test_rows_wait_for_more_until_the_batch_is_full() -> None:
    function = Doubling()
    async with batching(function, max_delay_seconds=10 * PATIENCE) as batcher:
        tasks = [ask(batcher, 0)]
        for value in range(1, 8):
            await asyncio.sleep(0.01)  # time enough to run rows that do not wait
            assert function.sizes == []
            tasks.append(ask(batcher, value))
        assert await answers_of(*tasks) == [[2 * i] for i in range(8)]
    assert function.sizes == [8]


async def test_a_delay_ends_if_no_more_rows_come() -> None:
    function, runs = Doubling(), list[BatchRun]()
    async with batching(function, max_delay_seconds=0.05, on_run=runs.append) as batcher:
        for value in range(3):
            assert await answer_of(ask(batcher, value)) == [2 * value]
    assert function.sizes == [1, 1, 1]
    assert min(waited for run in runs for waited in run.waited) >= 0.05


async def test_rows_that_a_full_batch_leaves_over_wait_for_more_too() -> None:
    function = Doubling()
    async with batching(function, max_delay_seconds=10 * PATIENCE) as batcher:
        first, second = ask(batcher, *range(5)), ask(batcher, *range(10, 15))
        assert await answer_of(first) == [0, 2, 4, 6, 8]
        assert not second.done()
        third = ask(batcher, 15, 16, 17)
        assert await answers_of(second, third) == [[20, 22, 24, 26, 28], [30, 32, 34]]
    assert function.sizes == [5, 8]


async def test_rows_that_are_left_over_do_not_wait_for_another_arrival() -> None:
    for _ in range(20):
        async with batching(Doubling(), max_delay_seconds=0.01) as batcher:
            await answers_of(*(ask(batcher, *range(size)) for size in (5, 5, 7, 3, 6, 8, 1)))


@pytest.mark.parametrize(("delay", "reason"), [(0.0, "worker_free"), (0.01, "delay")])
async def test_a_batch_that_is_not_full_is_dispatched_when_a_worker_is_free_or_the_delay_is_over(
    delay: float, reason: str
) -> None:
    dispatched: list[tuple[int, str]] = []
    async with batching(
        Doubling(), max_delay_seconds=delay, on_batch=lambda *batch: dispatched.append(batch)
    ) as batcher:
        await answer_of(ask(batcher, *range(20)))
        await answers_of(ask(batcher, *range(6)), ask(batcher, *range(3)))
    assert dispatched == [(8, "full"), (8, "full"), (4, reason), (6, "full"), (3, reason)]


# Failures.


async def test_a_failure_reaches_the_callers_of_its_batch_alone() -> None:
    function = Doubling(shut=True)
    async with batching(function) as batcher:
        before = ask(batcher, 1)
        await until(lambda: function.sizes == [1])
        bad, beside = ask(batcher, -1, 2), ask(batcher, 3, 4, 5, 6, 7, 8)
        await until(lambda: batcher.queue_length == 8)
        after = ask(batcher, 9)
        function.open()
        assert await answer_of(before) == [2]
        for task in (bad, beside):
            with pytest.raises(ArithmeticError, match="a row is negative"):
                await answer_of(task)
        assert await answers_of(after, ask(batcher, 10)) == [[18], [20]]


@pytest.mark.parametrize("bad", [0, 9, 23])
async def test_a_large_submission_fails_as_a_whole_if_one_of_its_batches_fails(bad: int) -> None:
    async with batching(Doubling(), instances=2) as batcher:
        values = list(range(24))
        values[bad] = -1
        with pytest.raises(ArithmeticError):
            await answer_of(ask(batcher, *values))
        assert await answer_of(ask(batcher, 5)) == [10]


async def test_several_batches_of_a_submission_may_fail() -> None:
    """The fixture checks that no error is left unretrieved."""
    all_run = threading.Barrier(3)

    def function(rows: Array) -> Rows:
        all_run.wait(PATIENCE)
        raise ArithmeticError

    async with batching(function, instances=3) as batcher:
        with pytest.raises(ArithmeticError):
            await answer_of(ask(batcher, *range(24)))


async def test_a_large_submission_fails_at_once_and_the_rest_of_it_is_dropped() -> None:
    first_may_end, begun = threading.Event(), list[int]()

    def function(rows: Array) -> Rows:
        begun.append(int(rows[0]))
        if rows[0] == 0:
            assert first_may_end.wait(PATIENCE)
            return (rows,)
        raise ArithmeticError

    async with batching(function, instances=2) as batcher:
        with pytest.raises(ArithmeticError):
            await answer_of(ask(batcher, *range(80)))
        assert batcher.queue_length == 0
        first_may_end.set()
    assert sorted(begun) == [0, 8]


# Closing.


async def test_closing_answers_the_accepted_callers_and_refuses_others() -> None:
    function = Doubling(shut=True)
    async with batching(function) as batcher:
        accepted = [ask(batcher, *range(first, first + 6)) for first in range(0, 60, 6)]
        await until(lambda: function.sizes == [6])
        closing = asyncio.create_task(batcher.close())
        await settle()
        with pytest.raises(UnavailableError, match="stopping"):
            await batcher.submit(np.array([1]))
        assert not closing.done()
        function.open()
        await asyncio.wait_for(closing, PATIENCE)
        assert [task.done() for task in accepted] == 10 * [True]
        assert [value for answer in await answers_of(*accepted) for value in answer] == [
            2 * i for i in range(60)
        ]


@pytest.mark.parametrize("cancelled", [False, True])
async def test_closing_waits_for_the_batch_that_runs_although_its_callers_have_cancelled(
    cancelled: bool,
) -> None:
    function = Doubling(shut=True)
    async with batching(function) as batcher:
        running = ask(batcher, 1)
        await until(lambda: function.sizes == [1])
        if cancelled:
            running.cancel()
        closing = asyncio.create_task(batcher.close())
        await settle()
        assert not closing.done()
        function.open()
        await asyncio.wait_for(closing, PATIENCE)
        assert running.done()


async def test_closing_waits_for_rows_that_wait_for_more() -> None:
    async with batching(Doubling(), max_delay_seconds=0.1) as batcher:
        waiting = ask(batcher, 1)
        await settle()
        await asyncio.wait_for(batcher.close(), PATIENCE)
        assert waiting.done()
        assert await answer_of(waiting) == [2]


# Memory and threads.


async def test_no_rows_are_kept_of_a_batch_that_has_run() -> None:
    """Not even of the last one: requests may be large, and the next one may come much later."""
    async with batching(lambda rows: (rows * 2,)) as batcher:
        rows = np.arange(3)
        kept = weakref.ref(rows)
        await batcher.submit(rows)
        del rows
        await until(lambda: gc.collect() >= 0 and kept() is None)


async def test_another_thread_can_read_the_length_of_the_queue() -> None:
    ended = threading.Event()

    def read_lengths() -> int:
        lengths = 0
        while not ended.is_set():
            assert batcher.queue_length >= 0
            lengths += 1
        return lengths

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        async with batching(Doubling()) as batcher:
            with ThreadPoolExecutor(1) as pool:
                reader = pool.submit(read_lengths)
                for _ in range(10):
                    await answers_of(*(ask(batcher, 1, 2) for _ in range(100)))
                ended.set()
            assert reader.result() > 0
    finally:
        sys.setswitchinterval(interval)
