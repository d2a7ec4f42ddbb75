"""What the tests of the service share."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import pytest
from glowserve_service.server import Server

from glowserve.v1.glow_service_pb2_grpc import GlowServiceStub


@pytest.fixture
def stub(server: Server) -> Iterator[GlowServiceStub]:
    """Calls `server` by hand."""
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        yield GlowServiceStub(channel)
