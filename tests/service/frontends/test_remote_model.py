"""Rows of a front-end that the engine process refuses."""

from __future__ import annotations

import os
import socket

import numpy as np
import pytest
from glowserve_service.errors import QueueFullError
from glowserve_service.front.received import ReceivedBytes
from glowserve_service.frontends import arena
from glowserve_service.frontends.arena import Arena, SharedMemory
from glowserve_service.frontends.channel import Channel
from glowserve_service.frontends.engine_link import EngineLink
from glowserve_service.frontends.protocol import NUMBER, Column, Kind, Layout, packed_error
from glowserve_service.frontends.remote_model import _RemoteLane, _RemoteTraffic
from glowserve_service.models.lane import FORWARD
from glowserve_service.observability.metrics import Metrics
from glowserve_service.scheduling.ticket import Ticket


async def test_an_error_that_is_kept_does_not_keep_the_memory_of_the_rows() -> None:
    """gRPC keeps the error of a call until Python's garbage collector comes by."""
    front, engine = socket.socketpair()
    memory, received, held = arena.create(), ReceivedBytes(), list[int]()

    def refuse(_: int, content: bytes) -> None:
        held.append(received.held)
        other.send(Kind.FAILED, content[: NUMBER.size], packed_error(QueueFullError("full")))

    other = Channel(engine, refuse, lambda: None)
    link = EngineLink(front, Metrics(), lambda *_: None, lambda: None, lambda: None)
    layout = Layout([Column(np.dtype(np.uint8), (4,))], [Column(np.dtype(np.float32), ())])
    lane = _RemoteLane(link, Arena(SharedMemory(memory), received), 1, FORWARD, layout)
    with pytest.raises(QueueFullError) as kept:
        await lane.run(np.zeros((3, 4), np.uint8), ticket=Ticket())
    assert held[0] > 0
    assert received.held == 0
    assert kept.value.__traceback__
    other.close()
    link._channel.close()
    os.close(memory)


async def test_scores_that_wait_to_be_sent_do_not_keep_the_memory_of_the_rows() -> None:
    ours, theirs = socket.socketpair()
    received = ReceivedBytes(2**20)
    blocks = Arena(SharedMemory(arena.create()), received)
    link = EngineLink(ours, Metrics(), lambda *_: None, lambda: None, lambda: None)
    traffic = _RemoteTraffic(link, 7)
    _, block = blocks.allocate(2**16, may_refuse=True)
    bits_per_dim = np.ndarray(3, np.float64, block, 2**15)
    bits_per_dim[:] = 1, 2, 3
    traffic.add(bits_per_dim, np.array([0.1, 0.2, 0.3]))
    del block, bits_per_dim
    assert received.held == 0
    traffic.send()
    await link.drained()
    assert np.array([1, 2, 3, 0.1, 0.2, 0.3]).tobytes() in theirs.recv(2**12)
    theirs.close()
