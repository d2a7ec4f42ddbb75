"""What the tests of the service share."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import pytest
from glowserve_service.server import Server

from glowserve.v1.glow_service_pb2_grpc import GlowServiceStub
from tests.service.stubs import address


@pytest.fixture(scope="module")
def channel(server: Server) -> Iterator[grpc.Channel]:
    """A connection to `server`."""
    with grpc.insecure_channel(address(server)) as channel:
        yield channel


@pytest.fixture(scope="module")
def stub(channel: grpc.Channel) -> GlowServiceStub:
    """Calls GlowService of `server`."""
    return GlowServiceStub(channel)
