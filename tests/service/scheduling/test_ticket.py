"""The admission gate: the first work of a call enters the queue before the rest."""

from __future__ import annotations

import asyncio

import pytest
from glowserve_service.errors import QueueFullError
from glowserve_service.scheduling.ticket import AdmissionGate

from tests.service.scheduling.batching import Doubling, answers_of, ask, batching, settle, until


async def test_later_work_waits_until_the_gate_opens_and_not_after() -> None:
    gate = AdmissionGate()
    waiting = [asyncio.ensure_future(gate.wait()) for _ in range(3)]
    await settle()
    assert not any(wait.done() for wait in waiting)
    gate.open()
    await settle()
    assert all(wait.done() for wait in waiting)
    await gate.wait()


async def test_later_work_that_is_ready_sooner_enters_the_queue_after_the_first_work() -> None:
    function, gate = Doubling(shut=True), AdmissionGate()
    async with batching(function, max_queue_size=8) as batcher:
        running = ask(batcher, 0)
        await until(lambda: function.sizes == [1])
        later = [ask(batcher, *range(first, first + 8), first=False, gate=gate) for first in (20, 30)]
        await settle()
        assert batcher.queue_length == 0
        first = ask(batcher, *range(10, 18), gate=gate)  # for which the others would leave no room
        await settle()
        assert batcher.queue_length == 24
        function.open()
        answers = await answers_of(running, first, *later)
    assert answers == [[0], *([2 * row for row in range(n, n + 8)] for n in (10, 20, 30))]
    assert [batch[0] for batch in function.batches] == [0, 10, 20, 30]


async def test_later_work_stays_out_of_the_queue_if_the_first_work_is_refused() -> None:
    function, gate, dropped = Doubling(shut=True), AdmissionGate(), list[tuple[str, int]]()
    async with batching(function, max_queue_size=8, on_drop=lambda *drop: dropped.append(drop)) as batcher:
        running = ask(batcher, 0)
        await until(lambda: function.sizes == [1])
        waiting = ask(batcher, *range(8))
        later = ask(batcher, *range(10, 18), first=False, gate=gate)
        first = ask(batcher, 9, gate=gate)
        with pytest.raises(QueueFullError):
            await first
        await settle()
        assert batcher.queue_length == 8
        later.cancel()  # as its call does once the first work has failed
        function.open()
        await answers_of(running, waiting)
    assert function.sizes == [1, 8]
    assert dropped == []
