"""The threads that run batches, shared by several batchers."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AsyncExitStack

import numpy as np
import pytest
from glowserve_service.scheduling.engine_threads import Rows
from glowserve_service.scheduling.workers import Workers

from tests.service.scheduling.batching import PATIENCE, Array, answers_of, ask, batching, until


async def test_a_function_runs_in_a_thread_and_its_error_is_raised() -> None:
    workers = Workers(1)
    (thread, numbers), _ = await workers.run(
        lambda rows: (np.array([threading.get_ident()]), rows), (np.arange(3),)
    )
    assert thread.item() != threading.get_ident()
    assert numbers.tolist() == [0, 1, 2]

    def fail(rows: Array) -> Rows:
        raise ArithmeticError

    with pytest.raises(ArithmeticError):
        await workers.run(fail, (np.arange(3),))
    workers.close()


async def test_batchers_that_share_workers_never_run_more_batches_than_there_are_workers() -> None:
    running = most = 0
    lock, two_run = threading.Lock(), threading.Event()

    def function(rows: Array) -> Rows:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
            if running == 2:
                two_run.set()
        assert two_run.wait(PATIENCE)
        time.sleep(0.001)  # in which a batch too many would begin
        with lock:
            running -= 1
        return (rows + 1,)

    workers = Workers(2)
    async with AsyncExitStack() as stack:
        batchers = [
            await stack.enter_async_context(batching(function, workers=workers, max_batch_size=4))
            for _ in range(3)
        ]
        answers = await answers_of(*(ask(batchers[i % 3], i, i, i) for i in range(150)))
    workers.close()
    assert answers == [[i + 1] * 3 for i in range(150)]
    assert most == 2


async def test_batchers_that_share_a_worker_take_turns() -> None:
    order: list[str] = []
    gate = threading.Event()

    def named(name: str) -> Callable[..., Rows]:
        def function(rows: Array) -> Rows:
            order.append(name)
            assert gate.wait(PATIENCE)
            return (rows,)

        return function

    workers = Workers(1)
    async with (
        batching(named("large"), workers=workers) as one,
        batching(named("small"), workers=workers) as other,
    ):
        large = ask(one, *range(64))
        await until(lambda: order == ["large"])
        small = ask(other, 0)
        await until(lambda: other.queue_length == 1)
        gate.set()
        await asyncio.wait_for(asyncio.gather(large, small), PATIENCE)
    workers.close()
    assert order.index("small") <= 2
    assert Counter(order) == {"large": 8, "small": 1}
