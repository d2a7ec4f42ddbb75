"""Threads for what surrounds a run of the engine: decoding pictures, drawing noise, writing PNG. Bounded.

An image that waits here waits with all of its request's bytes.
"""

from __future__ import annotations

import asyncio
import contextvars
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from glowserve_service.errors import QueueFullError
from glowserve_service.front.call import PREPARATION, current

T = TypeVar("T")

# Up to here the work takes less time than the other callers would notice.
_FEW_IMAGES = 4
_FEW_BYTES = 1 << 14


class Preparer:
    """Runs functions beside the event loop.

    Args:
        threads: how many side by side.
        max_images: most images that are here at a time; more are refused.
    """

    def __init__(self, threads: int, max_images: int) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="prepare")
        self._max_images = max_images
        self._images = 0

    async def run(
        self,
        function: Callable[..., T],
        *arguments: Any,
        images: int,
        size: int,
        admitted: bool = False,
        stage: str = PREPARATION,
    ) -> T:
        """Calls a function, in a thread unless the work is small.

        Args:
            function: what to call.
            arguments: with what.
            images: how many it is about.
            size: their bytes.
            admitted: whether other work for the same call was accepted before: such is not refused.
            stage: of the call, to which the time is added, waiting included.

        Raises:
            QueueFullError: too many images are here already; nothing was done.
        """
        few = images <= _FEW_IMAGES and size < _FEW_BYTES
        if not few and not admitted and self._images + images > self._max_images:
            raise QueueFullError(
                f"{self._images} images are being prepared and {images} more exceed {self._max_images}; "
                "try again later, with increasing pauses"
            )
        began = time.monotonic()
        try:
            return function(*arguments) if few else await self._in_thread(function, *arguments, images=images)
        finally:
            current().spent(stage, time.monotonic() - began)

    async def _in_thread(self, function: Callable[..., T], *arguments: Any, images: int) -> T:
        self._images += images
        run = contextvars.copy_context().run  # so that what is logged there names its call
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, run, function, *arguments)
        finally:
            self._images -= images

    def close(self) -> None:
        """Waits for what runs."""
        self._pool.shutdown()
