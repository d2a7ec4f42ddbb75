"""Threads for the CPU work beside a run of the engine: decoding pictures, drawing noise, writing PNG. Bounded.

An image that waits here waits with all of its request's bytes.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from glowserve_service.errors import QueueFullError
from glowserve_service.scheduling.ticket import Ticket

T = TypeVar("T")

# Up to here the work takes less time than the other callers would notice.
_FEW_IMAGES = 4
_FEW_BYTES = 1 << 14


class CpuPool:
    """Runs functions beside the event loop.

    Args:
        threads: how many side by side.
        max_images: most images that are here at a time; more are refused.
    """

    def __init__(self, threads: int, max_images: int) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="cpu")
        self._max_images = max_images
        self._images = 0

    async def run(self, function: Callable[[], T], ticket: Ticket, *, images: int, size: int) -> T:
        """Calls a function, in a thread unless the work is small.

        Args:
            function: what to call.
            ticket: of the work. Later work of a call is not refused.
            images: how many it is about.
            size: about how many bytes it goes through.

        Raises:
            QueueFullError: too many images are here already; nothing was done.
        """
        if images <= _FEW_IMAGES and size < _FEW_BYTES:
            return function()
        if ticket.first and self._images + images > self._max_images:
            raise QueueFullError(
                f"{self._images} images are being prepared and {images} more exceed {self._max_images}; "
                "try again later, with increasing pauses"
            )
        self._images += images
        run = contextvars.copy_context().run  # log lines from the thread name their call
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, run, function)
        finally:
            self._images -= images

    def close(self) -> None:
        """Waits for the functions that run."""
        self._pool.shutdown()
