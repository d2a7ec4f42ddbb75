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
from glowserve_service.frontends.remote_model import _RemoteLane
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
