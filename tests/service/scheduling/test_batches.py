"""Which batches run on all cores or beside others, how many rows they take, and what other models' work refuses."""

from __future__ import annotations

import asyncio
import threading
import time
from unittest import mock

import numpy as np
import pytest
from glowserve_service.errors import WaitTooLongError
from glowserve_service.scheduling import batcher as batcher_module
from glowserve_service.scheduling.batcher import Batcher
from glowserve_service.scheduling.engine_threads import Rows
from glowserve_service.scheduling.ticket import Ticket
from glowserve_service.scheduling.workers import Workers

from tests.service.scheduling.batching import (
    PATIENCE,
    Array,
    Doubling,
    answer_of,
    answers_of,
    ask,
    batching,
    settle,
    soon,
    until,
)


class Engine:
    """Takes a core for some milliseconds a row, and remembers which batches were wide. Waits while it is shut."""

    def __init__(self, row_seconds: float) -> None:
        self.wide: list[bool] = []
        self.open = threading.Event()
        self.open.set()
        self._row_seconds = row_seconds

    def __call__(self, rows: Array, *, wide: bool = False) -> Rows:
        self.wide.append(wide)
        assert self.open.wait(PATIENCE)
        end = time.thread_time() + self._row_seconds * len(rows)
        while time.thread_time() < end:
            pass
        return (rows * 2,)


async def test_a_batch_that_nothing_runs_or_waits_beside_is_wide_once_its_cost_is_known() -> None:
    engine = Engine(0.003)
    async with batching(engine, instances=2, widens=True) as batcher:
        for _ in range(3):
            assert await answer_of(ask(batcher, 1)) == [2]
    assert engine.wide == [False, True, True]


async def test_a_batch_beside_another_one_or_before_rows_that_wait_is_not_wide() -> None:
    engine = Engine(0.003)
    async with batching(engine, instances=2, widens=True, max_batch_size=1) as batcher:
        await answer_of(ask(batcher, 1))
        engine.wide.clear()
        engine.open.clear()
        tasks = [ask(batcher, 1)]
        await until(lambda: engine.wide == [True])
        tasks.append(ask(batcher, 1))
        await until(lambda: engine.wide == [True, False])
        tasks += [ask(batcher, 1), ask(batcher, 2)]
        await until(lambda: batcher.queue_length == 2)
        engine.open.set()
        await answers_of(*tasks)
    assert engine.wide[:3] == [True, False, False]


@pytest.mark.parametrize(("row_seconds", "widens"), [(0.0002, True), (0.003, False)])
async def test_a_batch_of_little_work_and_one_of_an_engine_that_cannot_are_never_wide(
    row_seconds: float, widens: bool
) -> None:
    engine = Engine(row_seconds)
    async with batching(engine, widens=widens) as batcher:
        for _ in range(5):
            await answer_of(ask(batcher, 1))
    assert engine.wide == [False] * 5


async def test_many_rows_of_little_work_are_wide() -> None:
    engine = Engine(0.0005)
    async with batching(engine, widens=True) as batcher:
        for rows in (1, 1, 8):
            await answer_of(ask(batcher, *range(rows)))
    assert engine.wide == [False, False, True]


# The size of a batch.


async def _sizes(
    batcher: Batcher, function: Doubling, row_seconds: float, *tickets: dict[str, float]
) -> list[int]:
    """The batches of eight submissions of a row that wait, after rows that took so long each."""
    batcher._pace.add(1, row_seconds, row_seconds)
    running = ask(batcher, 0)
    await until(lambda: function.sizes == [1])
    tasks = [ask(batcher, i, **(tickets[i] if i < len(tickets) else {})) for i in range(8)]
    await until(lambda: batcher.queue_length == 8)
    with mock.patch.object(batcher._pace, "add"):  # the estimate stays
        function.open()
        await answers_of(running, *tasks)
    return function.sizes[1:]


@pytest.mark.parametrize(
    ("seconds", "first"),
    [(60.0, 8), (21.0, 5), (6.0, 1), (1.5, 1)],
)
async def test_a_batch_takes_a_quarter_of_the_time_that_its_head_has_left(seconds: float, first: int) -> None:
    function = Doubling(shut=True)
    async with batching(function) as batcher:
        sizes = await _sizes(batcher, function, 1.0, {"deadline": soon(seconds), "first": False})
    assert sizes[0] == first
    assert sum(sizes) == 8


async def test_a_batch_of_short_rows_is_not_limited_by_a_deadline() -> None:
    function = Doubling(shut=True)
    async with batching(function) as batcher:
        sizes = await _sizes(batcher, function, 0.005, {"deadline": soon(20), "first": False})
        assert sizes == [8]
        assert [batcher._admission.rows_within(left) for left in (0.0, 0.01, 1.0)] == [8, 8, 8]


async def test_a_submission_that_cannot_be_split_runs_whatever_its_deadline_bears() -> None:
    function = Doubling(shut=True)
    async with batching(function) as batcher:
        batcher._pace.add(1, 1.0, 1.0)
        tasks = [ask(batcher, 0)]
        await until(lambda: function.sizes == [1])
        tasks += [ask(batcher, *range(5), deadline=soon(3), first=False), ask(batcher, 5)]
        await until(lambda: batcher.queue_length == 6)
        function.open()
        await answers_of(*tasks)
    assert function.sizes == [1, 5, 1]


async def test_batches_are_short_while_another_model_is_used() -> None:
    function, workers = Doubling(shut=True), Workers(1)
    async with (
        batching(function, workers=workers) as batcher,
        batching(Doubling(), workers=workers) as other,
    ):
        await answer_of(ask(other, 1))
        assert await _sizes(batcher, function, 0.06) == [4, 4]
    workers.close()


# Early refusals.


async def _refused(batcher: Batcher, seconds: float) -> WaitTooLongError | None:
    """The refusal of a row with that deadline; None if it is accepted, and cancelled again."""
    task = asyncio.create_task(batcher.submit(np.array([1]), ticket=Ticket(soon(seconds))))
    await asyncio.wait([task], timeout=0.01)
    if task.done():
        with pytest.raises(WaitTooLongError) as caught:
            task.result()
        return caught.value
    task.cancel()
    await asyncio.wait([task])
    return None


async def test_the_early_refusal_counts_the_work_of_other_models() -> None:
    function, workers = Doubling(shut=True), Workers(1)
    async with (
        batching(function, workers=workers) as batcher,
        batching(function, workers=workers) as other,
    ):
        for each in (batcher, other):
            each._pace.add(1, 1.0, 1.0)
        running = ask(other, 0)
        await until(lambda: function.sizes == [1])
        # The batch that runs, and its own row.
        assert await _refused(batcher, 1.5)
        assert await _refused(batcher, 2.5) is None
        waiting = [ask(batcher, 1, 2), ask(other, *range(8)), ask(other, *range(8))]
        await until(lambda: batcher.queue_length == 2 and other.queue_length == 16)
        # Two rows ahead of it, which the other model's work runs in turns with, and its own.
        assert await _refused(batcher, 4.0)
        assert await _refused(batcher, 6.5) is None
        function.open()
        await answers_of(running, *waiting)
    workers.close()


async def test_a_free_worker_makes_no_deadline_too_early() -> None:
    function = Doubling(shut=True)
    async with batching(function, instances=2) as batcher:
        batcher._pace.add(1, 10.0, 10.0)
        tasks = [ask(batcher, 0)]
        await until(lambda: function.sizes == [1])
        assert await _refused(batcher, 5.0) is None
        function.open()
        await answers_of(*tasks)


# Rows beside a batch that runs.


async def test_a_few_short_rows_wait_for_the_batch_that_runs_and_a_full_batch_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(batcher_module, "_MOST_BESIDE_SECONDS", PATIENCE)
    function = Doubling(shut=True)
    async with batching(function, instances=2) as batcher:
        tasks = [ask(batcher, 1)]
        await until(lambda: function.sizes == [1])
        tasks += [ask(batcher, 2)]
        await settle()
        assert function.sizes == [1]
        tasks += [ask(batcher, *range(7))]
        await until(lambda: function.sizes == [1, 8])
        function.open()
        await answers_of(*tasks)


async def test_rows_that_take_long_do_not_wait_for_the_batch_that_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(batcher_module, "_MOST_BESIDE_SECONDS", PATIENCE)
    function = Doubling(shut=True)
    async with batching(function, instances=2) as batcher:
        batcher._pace.add(1, 0.01, 0.01)
        tasks = [ask(batcher, 1)]
        await until(lambda: function.sizes == [1])
        tasks += [ask(batcher, 2)]
        await until(lambda: function.sizes == [1, 1])
        function.open()
        await answers_of(*tasks)


async def test_rows_do_not_wait_for_a_batch_that_hangs() -> None:
    function = Doubling(shut=True)
    async with batching(function, instances=2) as batcher:
        tasks = [ask(batcher, 1)]
        await until(lambda: function.sizes == [1])
        tasks += [ask(batcher, 2)]
        await until(lambda: function.sizes == [1, 1])
        function.open()
        await answers_of(*tasks)
