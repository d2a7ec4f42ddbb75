"""The threads that decode and draw noise."""

from __future__ import annotations

import asyncio
import threading

import pytest
from glowserve_service.errors import QueueFullError
from glowserve_service.scheduling.cpu_pool import Preparer

LARGE = 1 << 20


def test_small_work_is_done_at_once_and_large_work_beside_the_event_loop() -> None:
    async def threads() -> tuple[int, int]:
        preparer = Preparer(1, max_images=100)
        try:
            return (
                await preparer.run(threading.get_ident, images=1, size=100),
                await preparer.run(threading.get_ident, images=1, size=LARGE),
            )
        finally:
            preparer.close()

    small, large = asyncio.run(threads())
    assert small == threading.get_ident()
    assert large != small


def test_more_images_than_it_holds_are_refused_unless_their_call_was_admitted() -> None:
    async def main() -> None:
        preparer, going_on = Preparer(1, max_images=10), threading.Event()
        first = asyncio.ensure_future(preparer.run(going_on.wait, 60, images=8, size=LARGE))
        await asyncio.sleep(0)
        with pytest.raises(QueueFullError, match=r"^8 images are being prepared and 3 more exceed 10; "):
            await preparer.run(int, images=3, size=LARGE)
        admitted = asyncio.ensure_future(preparer.run(int, images=3, size=LARGE, admitted=True))
        await asyncio.sleep(0)
        going_on.set()
        assert await first
        assert await admitted == 0
        assert await preparer.run(int, images=10, size=LARGE) == 0  # there is room again
        preparer.close()

    asyncio.run(main())


def test_what_fails_makes_room_and_tells_why() -> None:
    async def main() -> None:
        preparer = Preparer(1, max_images=10)
        for _ in range(3):
            with pytest.raises(ZeroDivisionError):
                await preparer.run(lambda: 1 / 0, images=10, size=LARGE)
        preparer.close()

    asyncio.run(main())
