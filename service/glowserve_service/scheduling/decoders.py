"""Decodes pictures in processes of their own.

A decoder cannot be interrupted, and a small file can keep it busy for minutes, fill the memory or crash it. A process
can be ended. Libraries of processes (anyio.to_process, pebble) neither start them before the first call, nor limit
their memory, nor end them with the service.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from glowserve.images import UInt8Array
from glowserve.pictures import InvalidPictureError, Pictures
from glowserve_service.scheduling.decoder import Decoder, DecoderError

LATE, CRASHED, NO_MEMORY = "late", "crashed", "memory"
"""The reasons why pictures are given up."""

# The slowest pictures of 64 megapixels, lossless WebP, take 5 s.
_MOST_CPU_SECONDS = 10.0
# Decoders share the cores with each other and with the engines.
_MOST_SECONDS = 60.0
_MOST_SECONDS_TO_END = 2.0

# What a process takes without a picture, and for each pixel; lossless WebP takes most.
_BYTES_AT_LEAST = 128 * 2**20
_BYTES_PER_PIXEL = 20


class Decoders:
    """A fixed number of processes. One that was killed or crashed is replaced at once.

    Args:
        processes: how many.
        max_pixels: the most pixels in a call.
        max_bytes: the most bytes of the files in a call. Both determine how much memory a process may take.
        count_failure: called with the reason when pictures are given up.
    """

    def __init__(
        self, processes: int, max_pixels: int, max_bytes: int, count_failure: Callable[[str], None]
    ) -> None:
        self._memory = _BYTES_AT_LEAST + 2 * max_bytes + _BYTES_PER_PIXEL * max_pixels
        self._count_failure = count_failure
        self._idle: asyncio.LifoQueue[Decoder] = asyncio.LifoQueue()
        self._alive: set[Decoder] = set()
        self._is_closed = False
        for _ in range(processes):
            self._idle.put_nowait(self._new())

    async def ready(self) -> None:
        """Returns when the processes have started.

        Raises:
            DecoderError: one does not start.
        """
        for decoder in list(self._alive):
            await decoder.ready()

    async def decode(self, pictures: Pictures) -> UInt8Array:
        """The images, uint8 [N, H, W, C]. If it is cancelled, the process that decodes them ends.

        Raises:
            InvalidPictureError: see `Pictures.decode`; or decoding takes too long, or too much memory.
            DecoderError: the process crashed, or does not start.
        """
        decoder = await self._idle.get()
        if not decoder.usable:  # it did not start, or ended meanwhile
            decoder = self._new()
        try:
            return await self._decode(decoder, pictures)
        finally:
            if not decoder.usable and not self._is_closed:
                decoder.kill()
                decoder = self._new()
            self._idle.put_nowait(decoder)

    async def close(self) -> None:
        """Ends the processes, whatever they do."""
        self._is_closed = True
        lives = [decoder.life for decoder in self._alive]
        for decoder in self._alive:
            decoder.kill()
        if lives:
            await asyncio.wait(lives, timeout=_MOST_SECONDS_TO_END)

    async def _decode(self, decoder: Decoder, pictures: Pictures) -> UInt8Array:
        only = 0 if pictures.count == 1 else None
        try:
            await decoder.ready()
            async with asyncio.timeout(_MOST_SECONDS):
                return await decoder.decode(pictures)
        except TimeoutError:
            self._count_failure(LATE)
            raise InvalidPictureError(
                f"not decoded within {_MOST_CPU_SECONDS:g} s of CPU time and {_MOST_SECONDS:g} s in all; send a "
                "smaller picture, or fewer in a call",
                only,
            ) from None
        except MemoryError:
            self._count_failure(NO_MEMORY)
            raise InvalidPictureError(
                f"decoding takes more than {self._memory >> 20} MiB of memory; send a smaller picture, or a PNG",
                only,
            ) from None
        except DecoderError:
            self._count_failure(CRASHED)
            raise

    def _new(self) -> Decoder:
        decoder = Decoder(self._memory, _MOST_CPU_SECONDS)
        self._alive.add(decoder)
        decoder.life.add_done_callback(lambda _: self._alive.discard(decoder))
        return decoder
