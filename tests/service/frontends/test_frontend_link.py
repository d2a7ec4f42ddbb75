"""What the engine process answers a front-end, while that carries out what it was told."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
from glowserve_service.front.control import REQUESTS
from glowserve_service.frontends import arena
from glowserve_service.frontends.arena import SharedMemory
from glowserve_service.frontends.channel import Channel
from glowserve_service.frontends.frontend_link import FrontendLink
from glowserve_service.frontends.protocol import NUMBER, Kind
from glowserve_service.observability.metrics import Metrics

from glowserve.v1 import glow_service_pb2 as pb


class Control:
    """Answers calls about models."""

    async def answer(self, request: Any, kind: Any) -> Any:
        """There is none."""
        return pb.ListModelsResponse()


class FrontEnd:
    """The other end of a link, which carries out nothing by itself."""

    def __init__(self, connection: socket.socket) -> None:
        self._frames: asyncio.Queue[tuple[int, bytes]] = asyncio.Queue()
        self.channel = Channel(
            connection, lambda kind, content: self._frames.put_nowait((kind, content)), bool
        )

    async def next_kind(self, seconds: float = 2.0) -> int:
        """The kind of the next frame."""
        async with asyncio.timeout(seconds):
            return (await self._frames.get())[0]

    def list_models(self) -> None:
        """Sends a request."""
        self.channel.send(Kind.CONTROL, NUMBER.pack(0), bytes([REQUESTS.index(pb.ListModelsRequest)]))


@pytest.fixture
async def linked() -> AsyncIterator[tuple[FrontendLink, FrontEnd]]:
    """A link, and its other end."""

    async def on_change() -> None:
        pass

    front, engine = socket.socketpair()
    memory = arena.create()
    front_end = FrontEnd(front)
    link = FrontendLink(engine, SharedMemory(memory), Control(), Metrics(), on_change)  # type: ignore[arg-type]
    yield link, front_end
    link.close()
    front_end.channel.close()
    os.close(memory)


async def test_a_list_of_models_does_not_wait_for_a_front_end_that_refuses_calls(
    linked: tuple[FrontendLink, FrontEnd],
) -> None:
    """It waits for its calls, and the list is for one of them."""
    link, front_end = linked
    link.tell(Kind.REFUSE)
    assert await front_end.next_kind() == Kind.REFUSE
    front_end.list_models()
    assert await front_end.next_kind() == Kind.DONE


async def test_a_list_of_models_waits_until_the_front_end_knows_them(
    linked: tuple[FrontendLink, FrontEnd],
) -> None:
    link, front_end = linked
    link.serve([])
    assert await front_end.next_kind() == Kind.SERVED
    front_end.list_models()
    with pytest.raises(TimeoutError):
        await front_end.next_kind(0.1)
    front_end.channel.send(Kind.APPLIED)
    assert await front_end.next_kind() == Kind.DONE
