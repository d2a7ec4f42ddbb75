"""Work that is done for several callers in one step."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import numpy as np
import pytest
from glowserve_service.scheduling.cpu_pool import CpuPool
from glowserve_service.scheduling.decoders import Decoders
from glowserve_service.scheduling.engine_threads import Array
from glowserve_service.scheduling.joint_work import JointWork

MOST = 8
LARGE = 1 << 20
"""Bytes of work that is worth a thread."""


class Sums:
    """Adds two arrays of rows; keeps how many rows it got at a time, and in which threads."""

    def __init__(self) -> None:
        self.rows: list[int] = []
        self.threads: set[str] = set()
        self.error: Exception | None = None

    def __call__(self, first: Array, second: Array) -> Array:
        self.rows.append(len(first))
        self.threads.add(threading.current_thread().name)
        if self.error:
            raise self.error
        return np.asarray(first + second)


@pytest.fixture
def pool() -> Iterator[CpuPool]:
    # Nothing fits into it: the work of callers that have waited for a batch is not refused.
    pool = CpuPool(1, max_images=0, decoders=Decoders(0, 1, 1, lambda _: None))
    yield pool
    pool.close()


@pytest.fixture
def sums() -> Sums:
    return Sums()


@pytest.fixture
def work(sums: Sums) -> JointWork:
    return JointWork(sums, MOST)


async def ask(work: JointWork, pool: CpuPool, number: float, n: int = 1, size: int = 1) -> list[float]:
    rows = np.full(n, number), np.arange(n)
    found: list[float] = (await work.run(lambda: rows, images=n, size=size, pool=pool)).tolist()
    return found


async def test_callers_of_the_same_turn_get_their_own_rows_of_one_step(
    work: JointWork, sums: Sums, pool: CpuPool
) -> None:
    found = await asyncio.gather(ask(work, pool, 10), ask(work, pool, 20, 3), ask(work, pool, 30))
    assert found == [[10], [20, 21, 22], [30]]
    assert sums.rows == [5]
    assert await ask(work, pool, 40) == [40]
    assert sums.rows == [5, 1]


async def test_a_step_has_a_limited_number_of_rows_unless_a_caller_has_more(
    work: JointWork, sums: Sums, pool: CpuPool
) -> None:
    sizes = [5, 3, 1, 20, 2, 2]
    found = await asyncio.gather(*(ask(work, pool, 100, n) for n in sizes))
    assert found == [[100 + i for i in range(n)] for n in sizes]
    assert sorted(sums.rows) == [1, 4, 8, 20]


async def test_much_work_is_done_in_a_thread(work: JointWork, sums: Sums, pool: CpuPool) -> None:
    await asyncio.gather(*(ask(work, pool, 1, n=1, size=LARGE) for _ in range(MOST)))
    assert sums.rows == [MOST]
    assert all(name.startswith("cpu") for name in sums.threads)


async def test_an_error_is_raised_in_every_caller(work: JointWork, sums: Sums, pool: CpuPool) -> None:
    sums.error = ArithmeticError("no")
    found = await asyncio.gather(*(ask(work, pool, 1) for _ in range(3)), return_exceptions=True)
    assert found == [sums.error] * 3
    sums.error = None
    assert await ask(work, pool, 1) == [1]


async def test_a_caller_that_leaves_takes_nothing_from_the_others(work: JointWork, pool: CpuPool) -> None:
    first, leaving, last = (asyncio.ensure_future(ask(work, pool, number)) for number in (1, 2, 3))
    await asyncio.sleep(0)
    leaving.cancel()
    assert await asyncio.gather(first, last) == [[1], [3]]
    assert (await asyncio.gather(leaving, return_exceptions=True))[0].__class__ is asyncio.CancelledError
