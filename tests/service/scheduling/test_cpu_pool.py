"""The threads that draw noise, and where pictures are decoded."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import AsyncIterator

import numpy as np
import pytest
import pytest_asyncio
from glowserve_service.errors import QueueFullError
from glowserve_service.scheduling.cpu_pool import CpuPool
from glowserve_service.scheduling.decoders import Decoders
from glowserve_service.scheduling.ticket import Ticket

from glowserve.images import Preparation, encode_png
from glowserve.pictures import Pictures
from tests.service.scheduling.batching import PATIENCE, end_of_cancelled, settle

LARGE = 1 << 20
FIRST, LATER = Ticket(), Ticket(first=False)


@pytest_asyncio.fixture
async def pool() -> AsyncIterator[CpuPool]:
    """One thread, one process, and room for ten images."""
    decoders = Decoders(1, 10**6, 2**20, lambda _: None)
    pool = CpuPool(1, max_images=10, decoders=decoders)
    yield pool
    pool.close()
    await decoders.close()


@pytest.mark.parametrize(
    ("images", "size", "in_thread"),
    [(1, 100, False), (4, 2**14 - 1, False), (1, 2**14, True), (5, 100, True), (1, LARGE, True)],
)
async def test_small_work_is_done_at_once_and_large_work_in_a_thread(
    pool: CpuPool, images: int, size: int, in_thread: bool
) -> None:
    thread = await pool.run(threading.get_ident, FIRST, images=images, size=size)
    assert (thread != threading.get_ident()) is in_thread


async def test_more_pictures_than_the_pool_holds_are_refused_unless_they_are_later_work_of_a_call(
    pool: CpuPool,
) -> None:
    def pictures(n: int) -> Pictures:
        return Pictures(n * [encode_png(np.zeros((8, 8, 1), np.uint8))], (8, 8, 1), Preparation())

    first = asyncio.ensure_future(pool.decode(pictures(8), FIRST))
    await settle()
    with pytest.raises(QueueFullError, match=r"^8 images are being prepared and 5 more exceed 10; "):
        await pool.decode(pictures(5), FIRST)
    assert len(await pool.decode(pictures(4), FIRST)) == 4  # little work does not enter the pool
    assert len(await pool.decode(pictures(5), LATER)) == 5
    assert len(await first) == 8


async def test_a_thread_has_the_context_of_its_caller(pool: CpuPool) -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")
    variable.set("the caller's")
    assert await pool.run(variable.get, FIRST, images=8, size=LARGE) == "the caller's"


async def test_more_images_than_the_pool_holds_are_refused_unless_they_are_later_work_of_a_call(
    pool: CpuPool,
) -> None:
    may_end = threading.Event()
    first = asyncio.ensure_future(pool.run(lambda: may_end.wait(PATIENCE), FIRST, images=8, size=LARGE))
    await settle()
    with pytest.raises(QueueFullError, match=r"^8 images are being prepared and 3 more exceed 10; "):
        await pool.run(int, FIRST, images=3, size=LARGE)
    assert await pool.run(int, FIRST, images=3, size=100) == 0  # small work does not enter the pool
    later = asyncio.ensure_future(pool.run(int, LATER, images=3, size=LARGE))
    await settle()
    may_end.set()
    assert await first
    assert await later == 0
    assert await pool.run(int, FIRST, images=10, size=LARGE) == 0  # there is room again


async def test_work_that_fails_raises_its_error_and_makes_room(pool: CpuPool) -> None:
    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            await pool.run(lambda: 1 / 0, FIRST, images=10, size=LARGE)


async def test_work_whose_caller_cancels_makes_room_and_does_not_begin(pool: CpuPool) -> None:
    may_end, begun = threading.Event(), threading.Event()
    running = asyncio.ensure_future(pool.run(lambda: may_end.wait(PATIENCE), FIRST, images=2, size=LARGE))
    await settle()
    waiting = asyncio.ensure_future(pool.run(begun.set, FIRST, images=8, size=LARGE))
    await settle()
    await end_of_cancelled(waiting)
    takes_its_place = asyncio.ensure_future(pool.run(int, FIRST, images=8, size=LARGE))
    await settle()
    may_end.set()
    assert await running
    assert await takes_its_place == 0
    assert not begun.is_set()
