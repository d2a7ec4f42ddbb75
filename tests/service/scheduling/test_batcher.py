"""The batcher alone, with plain functions in the place of a model."""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
import time
import weakref
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from glowserve_service.errors import QueueFullError, UnavailableError
from glowserve_service.scheduling.batcher import Batcher, Rows, Workers

Array = npt.NDArray[np.int64]

# Far longer than anything here takes; what is over then would never have ended.
PATIENCE = 60


@pytest.fixture(autouse=True)
def no_error_goes_unseen(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """asyncio logs an error that nobody asked a future for when the future is collected."""
    yield
    gc.collect()
    records = [*caplog.get_records("call"), *caplog.records]
    assert [record.getMessage() for record in records if record.name == "asyncio"] == []


class Doubling:
    """Doubles each row, remembers its batches, and holds them back while the gate is shut."""

    def __init__(self, *, shut: bool = False) -> None:
        self.batches: list[list[int]] = []
        self.gate = threading.Event()
        if not shut:
            self.gate.set()

    def __call__(self, rows: Array) -> Rows:
        self.batches.append(rows.tolist())
        assert self.gate.wait(PATIENCE)
        if (rows < 0).any():
            raise ArithmeticError("a row is negative")
        return (rows * 2,)

    @property
    def sizes(self) -> list[int]:
        return [len(batch) for batch in self.batches]


@asynccontextmanager
async def batching(
    function: Callable[..., Rows], *, instances: int = 1, **settings: Any
) -> AsyncIterator[Batcher]:
    """A batcher that is closed at the end, when nothing may be left: no task, no thread."""
    others, threads = asyncio.all_tasks(), threading.enumerate()
    workers = Workers(instances)
    batcher = Batcher(function, workers, **{"max_batch_size": 8, "max_queue_size": 10_000} | settings)
    try:
        yield batcher
    finally:
        if isinstance(function, Doubling):
            function.gate.set()
        await asyncio.wait_for(batcher.close(), PATIENCE)
        workers.close()
    assert batcher.queue_length == 0
    assert asyncio.all_tasks() == others
    assert set(threading.enumerate()) <= set(threads)


def ask(batcher: Batcher, *values: int) -> asyncio.Task[Rows]:
    return asyncio.create_task(batcher.submit(np.array(values)))


async def answer_of(task: asyncio.Task[Rows]) -> list[int]:
    (doubled,) = await asyncio.wait_for(task, PATIENCE)
    return list(doubled.tolist())


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.001)


@pytest.mark.parametrize("max_delay_seconds", [0.0, 0.002])
@pytest.mark.parametrize("instances", [1, 3])
def test_rows_come_back_to_their_callers(instances: int, max_delay_seconds: float) -> None:
    rng = np.random.default_rng(instances)
    batches: list[Array] = []
    told: list[int] = []

    def function(numbers: Array, pairs: Array) -> Rows:
        batches.append(numbers)
        time.sleep(float(rng.uniform(0, 0.002)))
        return numbers * 2, pairs[:, ::-1], numbers.astype(np.float32)

    async def caller(batcher: Batcher, first: int, size: int) -> None:
        await asyncio.sleep(float(rng.uniform(0, 0.05)))
        numbers = np.arange(first, first + size)
        doubled, swapped, floats = await batcher.submit(numbers, np.stack([numbers, -numbers], axis=1))
        np.testing.assert_array_equal(doubled, numbers * 2)
        np.testing.assert_array_equal(swapped, np.stack([-numbers, numbers], axis=1))
        np.testing.assert_array_equal(floats, numbers)
        assert floats.dtype == np.float32

    async def run() -> None:
        async with batching(
            function,
            instances=instances,
            max_delay_seconds=max_delay_seconds,
            on_batch=lambda rows, _: told.append(rows),
        ) as batcher:
            sizes = rng.integers(1, 21, 200).tolist()
            firsts = np.cumsum([0, *sizes]).tolist()
            callers = [caller(batcher, first, size) for first, size in zip(firsts, sizes, strict=False)]
            await asyncio.wait_for(asyncio.gather(*callers), PATIENCE)
            assert sorted(np.concatenate(batches).tolist()) == list(range(sum(sizes)))

    asyncio.run(run())
    assert max(map(len, batches)) <= 8
    assert Counter(told) == Counter(map(len, batches))


def test_what_arrives_while_the_worker_is_busy_is_joined() -> None:
    async def run() -> None:
        function = Doubling(shut=True)
        async with batching(function) as batcher:
            tasks = [ask(batcher, 1)]
            await until(lambda: function.sizes == [1])
            tasks += [ask(batcher, 2, 3), ask(batcher, 4), ask(batcher, 5, 6, 7)]
            await until(lambda: batcher.queue_length == 6)
            function.gate.set()
            assert [await answer_of(task) for task in tasks] == [[2], [4, 6], [8], [10, 12, 14]]
        assert function.batches == [[1], [2, 3, 4, 5, 6, 7]]

    asyncio.run(run())


def test_no_batch_is_larger_than_the_most_and_none_is_overtaken() -> None:
    async def run() -> None:
        function = Doubling(shut=True)
        async with batching(function) as batcher:
            tasks = [ask(batcher, 0)]
            await until(lambda: function.sizes == [1])
            tasks += [ask(batcher, *range(5)), ask(batcher, *range(5)), ask(batcher, *range(3))]
            await until(lambda: batcher.queue_length == 13)
            function.gate.set()
            await asyncio.wait_for(asyncio.gather(*tasks), PATIENCE)
        assert function.sizes == [1, 5, 8]

    asyncio.run(run())


@pytest.mark.parametrize("instances", [1, 2])
def test_a_large_submission_is_cut_and_rejoined_in_order(instances: int) -> None:
    async def run() -> None:
        function = Doubling()
        async with batching(function, instances=instances) as batcher:
            assert await answer_of(ask(batcher, *range(100))) == [2 * i for i in range(100)]
        assert sorted(function.sizes) == [4] + 12 * [8]

    asyncio.run(run())


def test_a_full_queue_refuses_and_loses_nothing() -> None:
    async def run() -> None:
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
            function.gate.set()
            assert await answer_of(running) == [0]
            assert [await answer_of(task) for task in waiting] == [
                [20, 22, 24, 26, 28],
                [40, 42, 44, 46, 48],
            ]
            assert await answer_of(ask(batcher, 7)) == [14]
        assert sum(function.sizes) == 12

    asyncio.run(run())


def test_a_submission_larger_than_the_whole_queue_is_refused_whole() -> None:
    async def run() -> None:
        function = Doubling()
        async with batching(function, max_queue_size=20) as batcher:
            with pytest.raises(
                QueueFullError, match="0 images wait already and 21 more exceed the queue's 20"
            ):
                await batcher.submit(np.zeros(21, np.int64))
            assert len(await answer_of(ask(batcher, *range(20)))) == 20
        assert sum(function.sizes) == 20

    asyncio.run(run())


def test_rows_of_a_call_that_was_admitted_before_are_taken_into_a_full_queue() -> None:
    async def run() -> None:
        function = Doubling(shut=True)
        async with batching(function, max_queue_size=8) as batcher:
            tasks = [ask(batcher, 0)]
            await until(lambda: function.sizes == [1])
            tasks.append(ask(batcher, *range(8)))
            await until(lambda: batcher.queue_length == 8)
            tasks.append(asyncio.create_task(batcher.submit(np.arange(20), admitted=True)))
            await until(lambda: batcher.queue_length == 28)
            with pytest.raises(
                QueueFullError, match="28 images wait already and 1 more exceed the queue's 8"
            ):
                await batcher.submit(np.zeros(1, np.int64))
            function.gate.set()
            assert [len(await answer_of(task)) for task in tasks] == [1, 8, 20]
        with pytest.raises(UnavailableError, match="stopping"):
            await batcher.submit(np.arange(20), admitted=True)

    asyncio.run(run())


def test_the_rows_of_a_caller_that_gave_up_are_dropped_before_they_run() -> None:
    async def run() -> None:
        function = Doubling(shut=True)
        async with batching(function, max_queue_size=8) as batcher:
            running = ask(batcher, 1)
            await until(lambda: function.sizes == [1])
            stays, leaves, stays_too = ask(batcher, 2, 3), ask(batcher, 100, 101, 102), ask(batcher, 4, 5, 6)
            await until(lambda: batcher.queue_length == 8)
            leaves.cancel()
            with pytest.raises(asyncio.CancelledError):
                await leaves
            assert batcher.queue_length == 5
            takes_its_place = ask(batcher, 7, 8, 9)
            await until(lambda: batcher.queue_length == 8)
            function.gate.set()
            answers = [await answer_of(task) for task in (running, stays, stays_too, takes_its_place)]
            assert answers == [[2], [4, 6], [8, 10, 12], [14, 16, 18]]
        assert function.batches == [[1], [2, 3, 4, 5, 6, 7, 8, 9]]

    asyncio.run(run())


def test_a_caller_that_gives_up_while_its_batch_runs_leaves_its_batch_mates_alone() -> None:
    async def run() -> None:
        function = Doubling(shut=True)
        async with batching(function) as batcher:
            stays, leaves, stays_too = ask(batcher, 1, 2), ask(batcher, 3), ask(batcher, 4)
            await until(lambda: function.sizes == [4])
            leaves.cancel()
            with pytest.raises(asyncio.CancelledError):
                await leaves
            function.gate.set()
            assert await answer_of(stays) == [2, 4]
            assert await answer_of(stays_too) == [8]

    asyncio.run(run())


def test_a_queue_that_everybody_left_does_not_keep_the_worker() -> None:
    async def run() -> None:
        function = Doubling(shut=True)
        async with batching(function) as batcher:
            running, leaves = ask(batcher, 1), ask(batcher, 2)
            await until(lambda: function.sizes == [2])
            leaves_too = ask(batcher, 3)
            await until(lambda: batcher.queue_length == 1)
            leaves_too.cancel()
            leaves.cancel()
            function.gate.set()
            assert await answer_of(running) == [2]
            await asyncio.sleep(0.02)  # the queue is looked at, and found empty
            assert await answer_of(ask(batcher, 4)) == [8]
        assert function.batches == [[1, 2], [4]]

    asyncio.run(run())


def test_giving_up_a_large_submission_drops_the_pieces_that_have_not_begun() -> None:
    async def run() -> None:
        function = Doubling(shut=True)
        async with batching(function) as batcher:
            large = ask(batcher, *range(100))
            await until(lambda: function.sizes == [8])
            large.cancel()
            with pytest.raises(asyncio.CancelledError):
                await large
            assert batcher.queue_length == 0
            function.gate.set()
            assert await answer_of(ask(batcher, 200)) == [400]
        assert function.batches == [list(range(8)), [200]]

    asyncio.run(run())


def test_a_failure_is_told_to_its_batch_alone_and_the_batcher_goes_on() -> None:
    async def run() -> None:
        function = Doubling(shut=True)
        async with batching(function) as batcher:
            before = ask(batcher, 1)
            await until(lambda: function.sizes == [1])
            bad, mate = ask(batcher, -1, 2), ask(batcher, 3, 4, 5, 6, 7, 8)
            await until(lambda: batcher.queue_length == 8)
            after = ask(batcher, 9)
            function.gate.set()
            assert await answer_of(before) == [2]
            for task in (bad, mate):
                with pytest.raises(ArithmeticError, match="a row is negative"):
                    await answer_of(task)
            assert await answer_of(after) == [18]
            assert await answer_of(ask(batcher, 10)) == [20]

    asyncio.run(run())


@pytest.mark.parametrize("bad", [0, 9, 23])
def test_a_large_submission_fails_whole_if_a_piece_of_it_does(bad: int) -> None:
    async def run() -> None:
        function = Doubling()
        async with batching(function, instances=2) as batcher:
            values = list(range(24))
            values[bad] = -1
            with pytest.raises(ArithmeticError):
                await answer_of(ask(batcher, *values))
            assert await answer_of(ask(batcher, 5)) == [10]

    asyncio.run(run())


def test_several_pieces_may_fail_without_an_error_that_nobody_sees() -> None:
    async def run() -> None:
        all_run = threading.Barrier(3)

        def function(rows: Array) -> Rows:
            all_run.wait(PATIENCE)
            raise ArithmeticError

        async with batching(function, instances=3) as batcher:
            with pytest.raises(ArithmeticError):
                await answer_of(ask(batcher, *range(24)))

    asyncio.run(run())


def test_a_large_submission_that_failed_is_told_at_once_and_the_rest_of_it_is_dropped() -> None:
    async def run() -> None:
        first_may_end = threading.Event()
        begun: list[int] = []

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
        assert begun == [0, 8]

    asyncio.run(run())


def test_a_delay_gathers_company_until_the_batch_is_full() -> None:
    async def run() -> None:
        function = Doubling()
        async with batching(function, max_delay_seconds=10 * PATIENCE) as batcher:
            tasks = [ask(batcher, 0)]
            for value in range(1, 8):
                await asyncio.sleep(0.01)  # time enough to run what was there, if nothing held it back
                assert function.sizes == []
                tasks.append(ask(batcher, value))
            assert [await answer_of(task) for task in tasks] == [[2 * i] for i in range(8)]
        assert function.sizes == [8]

    asyncio.run(run())


def test_a_delay_ends_without_company() -> None:
    async def run() -> None:
        function = Doubling()
        async with batching(function, max_delay_seconds=0.05) as batcher:
            for value in range(3):
                assert await answer_of(ask(batcher, value)) == [2 * value]
        assert function.sizes == [1, 1, 1]

    asyncio.run(run())


def test_rows_left_over_by_a_full_batch_find_company_too() -> None:
    async def run() -> None:
        function = Doubling()
        async with batching(function, max_delay_seconds=10 * PATIENCE) as batcher:
            first, second = ask(batcher, *range(5)), ask(batcher, *range(10, 15))
            assert await answer_of(first) == [0, 2, 4, 6, 8]
            assert not second.done()
            third = ask(batcher, 15, 16, 17)
            assert await answer_of(second) == [20, 22, 24, 26, 28]
            assert await answer_of(third) == [30, 32, 34]
        assert function.sizes == [5, 8]

    asyncio.run(run())


def test_rows_left_over_do_not_wait_for_another_arrival() -> None:
    async def run() -> None:
        for _ in range(20):
            function = Doubling()
            async with batching(function, max_delay_seconds=0.01) as batcher:
                tasks = [ask(batcher, *range(size)) for size in (5, 5, 7, 3, 6, 8, 1)]
                await asyncio.wait_for(asyncio.gather(*tasks), PATIENCE)

    asyncio.run(run())


def test_callers_that_give_up_during_a_delay_leave_no_one_waiting() -> None:
    async def run() -> None:
        function = Doubling()
        async with batching(function, max_delay_seconds=0.05) as batcher:
            for _ in range(5):
                leaves, stays = ask(batcher, 1, 2), ask(batcher, 3)
                await until(lambda: batcher.queue_length == 3)
                leaves.cancel()
                assert await answer_of(stays) == [6]
            alone = ask(batcher, 4)
            await until(lambda: batcher.queue_length == 1)
            alone.cancel()
            assert await answer_of(ask(batcher, 5)) == [10]
        assert function.batches == [[3], [3], [3], [3], [3], [5]]

    asyncio.run(run())


def test_closing_answers_what_was_accepted_and_refuses_what_comes_after() -> None:
    async def run() -> None:
        function = Doubling(shut=True)
        async with batching(function) as batcher:
            accepted = [ask(batcher, *range(first, first + 6)) for first in range(0, 60, 6)]
            await until(lambda: function.sizes == [6])
            closing = asyncio.create_task(batcher.close())
            await asyncio.sleep(0.02)
            with pytest.raises(UnavailableError, match="stopping"):
                await batcher.submit(np.array([1]))
            assert not closing.done()
            function.gate.set()
            await asyncio.wait_for(closing, PATIENCE)
            assert [task.done() for task in accepted] == 10 * [True]
            doubled = [value for task in accepted for value in await answer_of(task)]
            assert doubled == [2 * i for i in range(60)]

    asyncio.run(run())


def test_closing_waits_for_the_batch_that_runs() -> None:
    async def run() -> None:
        function = Doubling(shut=True)
        async with batching(function) as batcher:
            running = ask(batcher, 1)
            await until(lambda: function.sizes == [1])
            closing = asyncio.create_task(batcher.close())
            await asyncio.sleep(0.05)
            assert not closing.done()
            function.gate.set()
            await asyncio.wait_for(closing, PATIENCE)
            assert running.done()

    asyncio.run(run())


def test_closing_does_not_wait_for_those_who_gave_up() -> None:
    async def run() -> None:
        function = Doubling()
        async with batching(function, max_delay_seconds=10 * PATIENCE) as batcher:
            task = ask(batcher, 1)
            await until(lambda: batcher.queue_length == 1)
            task.cancel()
            await asyncio.wait_for(batcher.close(), PATIENCE)
        assert function.batches == []

    asyncio.run(run())


def test_batchers_that_share_workers_never_run_more_batches_than_there_are_workers() -> None:
    running = most = 0
    lock = threading.Lock()

    def function(rows: Array) -> Rows:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.001)
        with lock:
            running -= 1
        return (rows + 1,)

    async def run() -> None:
        workers = Workers(2)
        batchers = [Batcher(function, workers, max_batch_size=4, max_queue_size=10_000) for _ in range(3)]
        tasks = [ask(batchers[i % 3], i, i, i) for i in range(150)]
        answers = [await answer_of(task) for task in tasks]
        assert answers == [[i + 1] * 3 for i in range(150)]
        for batcher in batchers:
            await asyncio.wait_for(batcher.close(), PATIENCE)
        workers.close()

    asyncio.run(run())
    assert most == 2


def test_the_length_of_the_queue_can_be_asked_from_another_thread() -> None:
    failures: list[BaseException] = []
    interval = sys.getswitchinterval()

    async def run() -> None:
        async with batching(Doubling()) as batcher:
            ended = threading.Event()

            def scrape() -> None:
                try:
                    while not ended.is_set():
                        assert batcher.queue_length >= 0
                except BaseException as error:
                    failures.append(error)

            scraper = threading.Thread(target=scrape)
            scraper.start()
            for _ in range(10):
                await asyncio.wait_for(asyncio.gather(*(ask(batcher, 1, 2) for _ in range(100))), PATIENCE)
            ended.set()
            scraper.join()

    sys.setswitchinterval(1e-5)
    try:
        asyncio.run(run())
    finally:
        sys.setswitchinterval(interval)
    assert failures == []


@pytest.mark.parametrize("seed", range(4))
def test_a_storm_of_callers_that_fail_give_up_and_overfill_the_queue(seed: int) -> None:
    """Whoever stays and brought nothing bad gets the right rows, or hears that its batch failed."""
    rng = np.random.default_rng(seed)
    outcomes: Counter[str] = Counter()

    def function(rows: Array) -> Rows:
        time.sleep(float(rng.uniform(0, 0.001)))
        if (rows < 0).any():
            raise ArithmeticError
        return (rows * 2,)

    async def caller(batcher: Batcher) -> None:
        await asyncio.sleep(float(rng.uniform(0, 0.1)))
        rows = rng.integers(0, 1000, rng.integers(1, 25))
        if rng.random() < 0.05:
            rows[-1] = -1
        task = asyncio.create_task(batcher.submit(rows))
        if rng.random() < 0.3:
            await asyncio.sleep(float(rng.uniform(0, 0.01)))
            task.cancel()
        try:
            (doubled,) = await task
        except asyncio.CancelledError:
            outcomes["gave up"] += 1
        except QueueFullError:
            outcomes["refused"] += 1
        except ArithmeticError:
            outcomes["failed"] += 1
        else:
            np.testing.assert_array_equal(doubled, rows * 2)
            outcomes["answered"] += 1

    async def run() -> None:
        delay = [0.0, 0.001][seed % 2]
        async with batching(function, instances=2, max_queue_size=200, max_delay_seconds=delay) as batcher:
            await asyncio.wait_for(asyncio.gather(*(caller(batcher) for _ in range(400))), PATIENCE)
            await until(lambda: batcher.queue_length == 0)

    asyncio.run(run())
    assert sum(outcomes.values()) == 400
    assert min(outcomes[outcome] for outcome in ("gave up", "refused", "failed", "answered")) > 0


def test_nothing_is_kept_of_a_batch_that_has_run() -> None:
    """Not even of the last one: requests may be large, and nobody knows when the next one comes."""

    async def run() -> None:
        workers = Workers(1)
        batcher = Batcher(lambda rows: (rows * 2,), workers, max_batch_size=4, max_queue_size=8)
        rows = np.arange(3)
        known = weakref.ref(rows)
        await batcher.submit(rows)
        del rows
        end = time.monotonic() + 5
        while known() is not None:
            assert time.monotonic() < end
            gc.collect()
            await asyncio.sleep(0.01)
        await batcher.close()
        workers.close()

    asyncio.run(run())
