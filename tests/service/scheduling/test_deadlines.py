"""Deadlines: what is late, and what the batcher drops because of it."""

from __future__ import annotations

import asyncio
import math
import time
from types import SimpleNamespace

import numpy as np
import pytest
from glowserve_service.errors import DeadlineError
from glowserve_service.scheduling import deadlines
from glowserve_service.scheduling.deadlines import deadline_passed, is_late
from glowserve_service.scheduling.ticket import Ticket

from tests.service.scheduling.batching import (
    PATIENCE,
    Doubling,
    answer_of,
    ask,
    batching,
    end_of_cancelled,
    soon,
    until,
    until_passed,
)


@pytest.mark.parametrize(
    ("now", "began", "deadline", "late"),
    [
        (50, 0, 100, False),
        (97.9, 0, 100, False),
        (98.1, 0, 100, True),  # gRPC rounds by a hundredth
        (100, 0, 100, True),
        (200, 0, 100, True),
        (98.1, 90, 100, False),
        (99.9, 90, 100, True),
        (1e9, 0, math.inf, False),
    ],
)
def test_a_call_is_late_at_its_deadline_and_within_a_fiftieth_of_its_time_before(
    now: float, began: float, deadline: float, late: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deadlines, "time", SimpleNamespace(monotonic=lambda: now))
    assert is_late(deadline, began) is late


def test_the_error_says_how_many_images_did_not_run() -> None:
    assert str(deadline_passed(7)) == "the deadline passes before 7 images have run; allow more time"


async def test_rows_whose_deadline_passes_in_the_queue_are_dropped_and_counted() -> None:
    function, dropped = Doubling(shut=True), list[tuple[str, int]]()
    async with batching(function, on_drop=lambda *drop: dropped.append(drop)) as batcher:
        running = ask(batcher, 0)
        await until(lambda: function.sizes == [1])
        deadline = soon(0.2)
        late = ask(batcher, 10, 11, 12, deadline=deadline)
        in_time = ask(batcher, 20, 21, deadline=soon(PATIENCE))
        late_too = ask(batcher, *range(30, 60), deadline=deadline)
        await until(lambda: batcher.queue_length == 35)
        await until_passed(deadline)
        function.open()
        for task, rows in ((late, 3), (late_too, 30)):
            with pytest.raises(DeadlineError, match=f"before {rows} images have run; allow more time"):
                await answer_of(task)
        assert await answer_of(in_time) == [40, 42]
        assert await answer_of(running) == [0]
    assert sorted(dropped) == [("deadline", 3), ("deadline", 30)]
    assert function.batches == [[0], [20, 21]]


@pytest.mark.parametrize("first", [True, False])
async def test_rows_that_arrive_after_their_deadline_are_dropped_and_counted(first: bool) -> None:
    function, dropped = Doubling(), list[tuple[str, int]]()
    async with batching(function, on_drop=lambda *drop: dropped.append(drop)) as batcher:
        with pytest.raises(DeadlineError, match="before 4 images"):
            await batcher.submit(np.arange(4), ticket=Ticket(deadline=soon(-0.01), first=first))
    assert dropped == [("deadline", 4)]
    assert function.batches == []


async def test_the_rest_of_a_large_call_is_dropped_when_its_deadline_passes() -> None:
    function, dropped = Doubling(shut=True), list[tuple[str, int]]()
    async with batching(function, on_drop=lambda *drop: dropped.append(drop)) as batcher:
        deadline = soon(0.3)
        large = ask(batcher, *range(64), deadline=deadline)
        await until(lambda: function.sizes == [8])
        await until_passed(deadline)
        function.open()
        with pytest.raises(DeadlineError, match="before 56 images"):
            await answer_of(large)
        assert await answer_of(ask(batcher, 0, 1)) == [0, 2]
    assert dropped == [("deadline", 56)]
    assert function.sizes == [8, 2]


async def test_a_deadline_that_passes_while_the_last_rows_run_does_no_harm() -> None:
    function, dropped = Doubling(shut=True), list[tuple[str, int]]()
    async with batching(function, on_drop=lambda *drop: dropped.append(drop)) as batcher:
        deadline = soon(0.2)
        task = ask(batcher, 1, 2, deadline=deadline)
        await until(lambda: function.sizes == [2])
        await until_passed(deadline)
        function.open()
        assert await answer_of(task) == [2, 4]
    assert dropped == []


@pytest.mark.parametrize("seconds", [math.inf, PATIENCE])
async def test_rows_of_a_call_cancelled_before_its_deadline_count_as_cancelled(seconds: float) -> None:
    function, dropped = Doubling(shut=True), list[tuple[str, int]]()
    async with batching(function, on_drop=lambda *drop: dropped.append(drop)) as batcher:
        task = ask(batcher, *range(20), deadline=soon(seconds))
        await until(lambda: function.sizes == [8])
        await end_of_cancelled(task)
        assert dropped == [("cancelled", 12)]
        function.open()
        assert await answer_of(ask(batcher, 1)) == [2]
    assert dropped == [("cancelled", 12)]  # they are not counted again


async def test_rows_of_a_call_that_grpc_cancels_a_little_before_its_deadline_count_as_late() -> None:
    function, dropped = Doubling(shut=True), list[tuple[str, int]]()
    async with batching(function, on_drop=lambda *drop: dropped.append(drop)) as batcher:
        deadline = soon(0.5)
        task = ask(batcher, *range(20), deadline=deadline)
        await until(lambda: function.sizes == [8])
        await asyncio.sleep(deadline - 0.005 - time.monotonic())  # a hundredth early
        await end_of_cancelled(task)
        assert dropped == [("deadline", 12)]
        function.open()
        assert await answer_of(ask(batcher, 1)) == [2]
    assert dropped == [("deadline", 12)]
