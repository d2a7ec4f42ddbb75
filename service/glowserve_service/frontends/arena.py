"""The shared memory of a front-end and the engine process.

It is a memfd, not a file in /dev/shm, of which a container has 64 MiB. It is sparse: what was never written to, or was
given back to the system, takes no memory.
"""

from __future__ import annotations

import asyncio
import mmap
import os
import weakref
from bisect import insort
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np

from glowserve.images import UInt8Array
from glowserve_service.errors import BytesExhaustedError
from glowserve_service.front.received import ReceivedBytes
from glowserve_service.scheduling.engine_threads import Array

# Addresses, not memory: the budget of received bytes limits that.
_SIZE = 2**36
_PAGE = mmap.PAGESIZE
# Blocks from this size on are copied in a thread, and given back to the system at once; smaller ones are used again.
_LARGE = 2**20
# So much of what smaller blocks have taken is kept while there is none.
_KEPT = 2**22


def create() -> int:
    """The descriptor of a new memory."""
    descriptor = os.memfd_create("glowserve", os.MFD_CLOEXEC)
    os.ftruncate(descriptor, _SIZE)
    return descriptor


async def copy(arrays: Sequence[Array], places: Sequence[Array]) -> None:
    """Copies arrays into or out of blocks; large ones in a thread. If it is cancelled, it waits for that."""
    if sum(array.nbytes for array in arrays) < _LARGE:
        _copy(arrays, places)
        return
    copying = asyncio.ensure_future(asyncio.to_thread(_copy, arrays, places))
    cancelled = False
    while not copying.done():  # a block that is freed meanwhile would be another call's
        try:
            await asyncio.wait({copying})
        except asyncio.CancelledError:
            cancelled = True
    copying.result()
    if cancelled:
        raise asyncio.CancelledError


def _copy(arrays: Sequence[Array], places: Sequence[Array]) -> None:
    for array, place in zip(arrays, places, strict=True):
        place[:] = array


class SharedMemory:
    """The memory, mapped by a process.

    Args:
        descriptor: from `create`.
    """

    def __init__(self, descriptor: int) -> None:
        self._map = mmap.mmap(descriptor, _SIZE)

    def block(self, offset: int, size: int) -> UInt8Array:
        """The bytes of a block, uint8 [size]."""
        return np.frombuffer(self._map, np.uint8, size, offset)

    def give_back(self, offset: int, size: int) -> None:
        """Frees the memory of whole pages; they are zeros from now on."""
        self._map.madvise(mmap.MADV_REMOVE, offset, size)


class Arena:
    """Allocates blocks of the memory: the first hole that is large enough. For a front-end's event loop.

    A block is free when no array refers to it. Until then it counts as received bytes.

    Args:
        memory: the memory.
        received: the budget.
    """

    def __init__(self, memory: SharedMemory, received: ReceivedBytes) -> None:
        self._memory, self._received = memory, received
        self._holes: list[tuple[int, int]] = [(0, _SIZE)]
        self._top = 0  # the end of the highest block so far
        self._blocks: dict[int, weakref.ref[Any]] = {}
        self._freed: deque[tuple[int, int]] = deque()
        self._loop = asyncio.get_running_loop()

    def allocate(self, size: int, *, may_refuse: bool) -> tuple[int, UInt8Array]:
        """The offset of a new block, and the block, uint8 of at least that size.

        Args:
            size: in bytes.
            may_refuse: whether the budget applies. It does not, either, while there is no other block.

        Raises:
            BytesExhaustedError: it would exceed the budget.
        """
        self._join_freed()
        size = -(-size // _PAGE) * _PAGE
        place = next((place for place, (_, room) in enumerate(self._holes) if room >= size), None)
        if place is None:
            raise BytesExhaustedError("the memory for rows is full; try again later, with increasing pauses")
        self._received.take(size, must=not (may_refuse and self._blocks))
        offset, room = self._holes[place]
        self._holes[place : place + 1] = [(offset + size, room - size)] if room > size else []
        block = self._memory.block(offset, size)
        self._top = max(self._top, offset + size)
        self._blocks[offset] = weakref.ref(block, lambda _: self._free(offset, size))
        return offset, block

    def trim(self) -> None:
        """Gives back to the system what blocks have taken, if there is none."""
        self._join_freed()
        if not self._blocks and self._top > _KEPT:
            self._memory.give_back(_KEPT, self._top - _KEPT)
            self._top = _KEPT

    def _free(self, offset: int, size: int) -> None:
        """From any thread: that of the last array that refers to the block."""
        self._received.give_back(size)
        self._freed.append((offset, size))
        if size >= _LARGE and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._join_freed)

    def _join_freed(self) -> None:
        """Adds the blocks that were freed to the holes."""
        while self._freed:
            offset, size = self._freed.popleft()
            del self._blocks[offset]
            if size >= _LARGE:
                self._memory.give_back(offset, size)
            insort(self._holes, (offset, size))
            self._merge(self._holes.index((offset, size)))

    def _merge(self, place: int) -> None:
        """Joins a hole with those beside it."""
        for left in (place, place - 1):
            if 0 <= left < len(self._holes) - 1:
                (offset, size), (next_offset, next_size) = self._holes[left : left + 2]
                if offset + size == next_offset:
                    self._holes[left : left + 2] = [(offset, size + next_size)]
