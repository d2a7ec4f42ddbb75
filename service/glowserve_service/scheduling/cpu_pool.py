"""The CPU work around a run of the engine: decoding pictures in processes; drawing noise and writing PNG in threads.

The pool is bounded, because an image that waits in it keeps all bytes of its request in memory.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from glowserve.images import UInt8Array
from glowserve.pictures import Pictures
from glowserve_service.errors import QueueFullError
from glowserve_service.scheduling.decoders import Decoders
from glowserve_service.scheduling.ticket import Ticket

T = TypeVar("T")

# Less work than this is done on the event loop: other calls would not notice the delay.
_FEW_IMAGES = 4
_FEW_BYTES = _FEW_PIXELS = 1 << 14


class CpuPool:
    """Does work elsewhere, so that the event loop goes on; little work on the event loop.

    Args:
        threads: how many functions run at the same time.
        max_images: most images in the pool at a time; work that would exceed it is refused.
        decoders: decode pictures.
    """

    def __init__(self, threads: int, max_images: int, decoders: Decoders) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="cpu")
        self._max_images = max_images
        self._images = 0
        self._decoders = decoders

    async def decode(self, pictures: Pictures, ticket: Ticket) -> UInt8Array:
        """Decodes pictures: on the event loop if their headers promise little work, else in a process.

        Args:
            pictures: what to decode.
            ticket: of the work. Later work of a call is not refused.

        Raises:
            InvalidPictureError: see `Decoders.decode`.
            QueueFullError: too many images are in the pool; nothing was done.
        """
        if pictures.count <= _FEW_IMAGES and sum(map(len, pictures.files)) < _FEW_BYTES:
            pixels = pictures.plain_pixels
            if pixels is not None and pixels <= _FEW_PIXELS:
                return pictures.decode()
        with self._admitted(pictures.count, ticket):
            return await self._decoders.decode(pictures)

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
        run = contextvars.copy_context().run  # log lines from the thread name their call
        with self._admitted(images, ticket):
            return await asyncio.get_running_loop().run_in_executor(self._pool, run, function)

    def close(self) -> None:
        """Waits for the functions that run, each of which works on one call's images or one batch. Blocks."""
        self._pool.shutdown()

    @contextmanager
    def _admitted(self, images: int, ticket: Ticket) -> Iterator[None]:
        """Counts images that are in the pool."""
        if ticket.first and self._images + images > self._max_images:
            raise QueueFullError(
                f"{self._images} images are being prepared and {images} more exceed {self._max_images}; "
                "try again later, with increasing pauses"
            )
        self._images += images
        try:
            yield
        finally:
            self._images -= images
