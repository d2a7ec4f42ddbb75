"""Threads for what surrounds a run of the engine: decoding pictures, drawing noise, writing PNG. Bounded.

An image that waits here waits with all of its request's bytes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from service.errors import QueueFullError

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
        self, function: Callable[..., T], *arguments: Any, images: int, size: int, admitted: bool = False
    ) -> T:
        """Calls a function, in a thread unless the work is small.

        Args:
            function: what to call.
            arguments: with what.
            images: how many it is about.
            size: their bytes.
            admitted: whether other work for the same call was accepted before: such is not refused.

        Raises:
            QueueFullError: too many images are here already; nothing was done.
        """
        if images <= _FEW_IMAGES and size < _FEW_BYTES:
            return function(*arguments)
        if not admitted and self._images + images > self._max_images:
            raise QueueFullError(
                f"{self._images} images are being prepared and {images} more exceed {self._max_images}; "
                "try again later, with increasing pauses"
            )
        self._images += images
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, function, *arguments)
        finally:
            self._images -= images

    def close(self) -> None:
        """Waits for what runs."""
        self._pool.shutdown()
