"""Threads for the CPU work around a run of the engine: decoding pictures, drawing noise, writing PNG.

The pool is bounded, because an image that waits in it keeps all bytes of its request in memory.
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

# Less work than this is done on the event loop: other calls would not notice the delay.
_FEW_IMAGES = 4
_FEW_BYTES = 1 << 14


class CpuPool:
    """Runs functions in threads, so that the event loop goes on.

    Args:
        threads: how many functions run at the same time.
        max_images: most images in the pool at a time; work that would exceed it is refused.
    """

    def __init__(self, threads: int, max_images: int) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="cpu")
        self._max_images = max_images
        self._images = 0

    async def run(self, function: Callable[[], T], ticket: Ticket, *, images: int, size: int) -> T:
        """Calls a function: on the event loop if the work is small, else in a thread.

        Args:
            function: what to call.
            ticket: of the work. Later work of a call is not refused.
            images: how many images it works on.
            size: about how many bytes it reads or writes.

        Raises:
            QueueFullError: too many images are in the pool; nothing was done.
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
        """Waits for the functions that run. Blocks."""
        self._pool.shutdown()
