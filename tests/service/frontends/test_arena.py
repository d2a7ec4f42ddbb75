"""Blocks of the memory that a front-end shares with the engine process."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator

import numpy as np
import pytest
from glowserve_service.errors import BytesExhaustedError
from glowserve_service.front.received import ReceivedBytes
from glowserve_service.frontends import arena
from glowserve_service.frontends.arena import Arena, SharedMemory

PAGE = 4096


class Blocks(Arena):
    """An arena with a budget of 100 pages, and the descriptor of its memory."""

    def __init__(self) -> None:
        self.descriptor = arena.create()
        self.received = ReceivedBytes(100 * PAGE)
        super().__init__(SharedMemory(self.descriptor), self.received)

    @property
    def bytes_used(self) -> int:
        """How much memory the system has given to it."""
        return os.fstat(self.descriptor).st_blocks * 512


@pytest.fixture
async def blocks() -> AsyncIterator[Blocks]:
    made = Blocks()
    yield made
    os.close(made.descriptor)


async def test_what_one_mapping_writes_another_reads(blocks: Blocks) -> None:
    offset, block = blocks.allocate(10, may_refuse=True)
    block[:3] = 1, 2, 3
    other = SharedMemory(blocks.descriptor).block(offset, 3)
    assert other.tolist() == [1, 2, 3]


async def test_a_block_lives_as_long_as_a_view_of_it(blocks: Blocks) -> None:
    first, block = blocks.allocate(PAGE, may_refuse=True)
    view = block[64:128].view(np.float32).reshape(4, 4)[1:]
    del block
    second, other = blocks.allocate(PAGE, may_refuse=True)
    assert second != first
    del view
    third, _ = blocks.allocate(PAGE, may_refuse=True)
    assert third == first
    assert len(other)


async def test_a_copy_that_is_cancelled_again_and_again_ends_first(monkeypatch: pytest.MonkeyPatch) -> None:
    began, may_end, ended = threading.Event(), threading.Event(), threading.Event()

    def copy(*_: object) -> None:
        began.set()
        assert may_end.wait(10)
        ended.set()

    monkeypatch.setattr(arena, "_copy", copy)
    large = np.zeros(2**20, np.uint8)
    copying = asyncio.create_task(arena.copy([large], [large]))
    await asyncio.to_thread(began.wait, 10)
    for _ in range(3):
        copying.cancel()
        await asyncio.sleep(0.01)
        assert not copying.done()
    may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await copying
    assert ended.is_set()


async def test_bytes_count_in_the_budget_until_they_are_freed(blocks: Blocks) -> None:
    _, block = blocks.allocate(60 * PAGE, may_refuse=True)
    assert blocks.received.held == 60 * PAGE
    with pytest.raises(BytesExhaustedError):
        blocks.allocate(41 * PAGE, may_refuse=True)
    _, later = blocks.allocate(41 * PAGE, may_refuse=False)
    assert blocks.received.held == 101 * PAGE
    del block, later
    assert blocks.received.held == 0


async def test_the_only_block_may_exceed_the_budget(blocks: Blocks) -> None:
    _, block = blocks.allocate(1000 * PAGE, may_refuse=True)
    assert len(block) == 1000 * PAGE


async def test_freed_neighbours_become_one_hole(blocks: Blocks, rng: np.random.Generator) -> None:
    held = [blocks.allocate(int(size) * PAGE, may_refuse=False)[1] for size in rng.integers(1, 9, 200)]
    for place in rng.permutation(200):
        held[place] = np.zeros(0, np.uint8)
        blocks.allocate(PAGE, may_refuse=False)
    blocks.allocate(PAGE, may_refuse=False)
    blocks._join_freed()
    assert blocks._holes == [(0, arena._SIZE)]
    assert blocks.received.held == 0


async def test_the_memory_of_large_blocks_is_given_back(blocks: Blocks) -> None:
    _, block = blocks.allocate(2**22, may_refuse=True)
    block[:] = 1
    assert blocks.bytes_used >= 2**22
    del block
    await asyncio.sleep(0)
    assert blocks.bytes_used == 0
    assert not blocks.allocate(2**22, may_refuse=True)[1].any()


async def test_the_memory_of_many_small_blocks_is_given_back_once_there_is_none(blocks: Blocks) -> None:
    made = [blocks.allocate(2**16, may_refuse=False)[1] for _ in range(200)]
    for block in made:
        block[:] = 1
    del block
    blocks.trim()
    assert blocks.bytes_used == 200 * 2**16
    assert made[0].all()
    made.clear()
    blocks.trim()
    assert blocks.bytes_used == arena._KEPT
