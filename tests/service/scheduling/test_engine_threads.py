"""The threads of batches: which one is used, what a run costs, and how they end."""

from __future__ import annotations

import asyncio
import threading
import time

import numpy as np
import pytest
from glowserve_service.scheduling.engine_threads import EngineThreads, Rows

from tests.service.scheduling.batching import PATIENCE, Array

ROWS = (np.arange(3),)


async def test_the_thread_that_has_become_idle_most_recently_is_used_next() -> None:
    threads, gates = EngineThreads(), [threading.Event() for _ in range(3)]

    def wait_for(i: int) -> asyncio.Task[int]:
        def function(_: Array) -> Rows:
            assert gates[i].wait(PATIENCE)
            return (np.array(threading.get_ident()),)

        return asyncio.create_task(_ident(threads, function))

    tasks = [wait_for(i) for i in range(3)]
    await asyncio.sleep(0)
    idents = []
    for i in (2, 0, 1):
        gates[i].set()
        idents.append(await asyncio.wait_for(tasks[i], PATIENCE))
    assert len(set(idents)) == 3
    assert [await asyncio.wait_for(wait_for(0), PATIENCE) for _ in range(3)] == [idents[2]] * 3
    at_once = [wait_for(i) for i in range(3)]
    assert [await asyncio.wait_for(task, PATIENCE) for task in at_once] == idents[::-1]
    threads.close(wait=True)


async def test_the_cost_of_a_run_is_the_processor_time_of_its_thread() -> None:
    threads = EngineThreads()

    def sleep(rows: Array) -> Rows:
        time.sleep(0.1)
        return (rows,)

    def compute(rows: Array) -> Rows:
        end = time.thread_time() + 0.02
        while time.thread_time() < end:
            pass
        return (rows,)

    assert (await threads.run(sleep, ROWS)).own_seconds < 0.05
    assert (await threads.run(compute, ROWS)).own_seconds >= 0.02
    threads.close(wait=True)


async def test_an_error_is_raised_and_the_thread_runs_on() -> None:
    threads = EngineThreads()

    def fail(_: Array) -> Rows:
        raise ArithmeticError

    for _ in range(3):
        with pytest.raises(ArithmeticError):
            await threads.run(fail, ROWS)
    assert (await threads.run(lambda rows: (rows,), ROWS)).rows == ROWS
    assert len([each for each in threading.enumerate() if each.name.startswith("engine")]) == 1
    threads.close(wait=True)


async def test_closing_waits_for_the_runs_or_leaves_them_behind() -> None:
    gate, ended = threading.Event(), threading.Event()

    def function(rows: Array) -> Rows:
        assert gate.wait(PATIENCE)
        ended.set()
        return (rows,)

    threads = EngineThreads()
    run = asyncio.create_task(threads.run(function, ROWS))
    await asyncio.sleep(0)
    threads.close(wait=False)
    assert not ended.is_set()
    gate.set()
    threads.close(wait=True)
    assert ended.is_set()
    assert (await asyncio.wait_for(run, PATIENCE)).rows == ROWS


async def _ident(threads: EngineThreads, function: object) -> int:
    return int((await threads.run(function, ROWS)).rows[0])  # type: ignore[arg-type]
