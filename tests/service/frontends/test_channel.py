"""Frames between two event loops; here both ends are in one."""

from __future__ import annotations

import asyncio
import socket

import numpy as np
from glowserve_service.frontends.channel import Channel


class Ends:
    """Both ends of a channel, and the frames that each has got."""

    def __init__(self) -> None:
        one, other = socket.socketpair()
        self.got: tuple[list[tuple[int, bytes]], ...] = [], []
        self.ended = asyncio.Event()
        self.one = Channel(one, lambda *frame: self.got[0].append(frame), self.ended.set)
        self.other = Channel(other, lambda *frame: self.got[1].append(frame), self.ended.set)

    async def wait_for(self, *counts: int) -> None:
        async with asyncio.timeout(20):
            while tuple(map(len, self.got)) != counts:
                await asyncio.sleep(0.001)

    def close(self) -> None:
        self.one.close()
        self.other.close()


async def test_frames_of_all_sizes_arrive_in_order_in_both_directions(rng: np.random.Generator) -> None:
    ends = Ends()
    frames = [
        (int(rng.integers(256)), rng.bytes(int(size))) for size in (0, 1, 5, 4096, 10**6, 0, 7 * 10**6, 3)
    ]
    for kind, content in frames:
        ends.one.send(kind, content[:2], content[2:])
        ends.other.send(kind, content)
    await ends.wait_for(len(frames), len(frames))
    assert ends.got == (frames, frames)
    await ends.one.drained()
    ends.close()


async def test_the_frames_of_a_turn_are_one_write() -> None:
    ends = Ends()
    for kind in range(100):
        ends.one.send(kind, b"content")
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await ends.wait_for(0, 100)
    assert [kind for kind, _ in ends.got[1]] == list(range(100))
    ends.close()


async def test_the_end_comes_after_the_last_frame() -> None:
    ends = Ends()
    ends.one.send(1, b"last")
    await ends.one.drained()
    ends.one.close()
    await asyncio.wait_for(ends.ended.wait(), 20)
    assert ends.got[1] == [(1, b"last")]
    ends.other.send(2, b"nobody gets this")
    ends.close()
