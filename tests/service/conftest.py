"""What the tests of the service share."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import pytest
from glowserve_service.server import Server

from glowserve.runtime.config import RuntimeConfig
from glowserve.runtime.engine import Engine
from glowserve.runtime.repository import Bundle
from glowserve.v1.glow_service_pb2_grpc import GlowServiceStub


@pytest.fixture
def stub(server: Server) -> Iterator[GlowServiceStub]:
    """Calls `server` by hand."""
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        yield GlowServiceStub(channel)


@pytest.fixture(scope="session")
def engine(bundle: Bundle) -> Engine:
    """As a service runs the shared model: several runs of one thread each, side by side."""
    return Engine(bundle, RuntimeConfig(device="cpu", threads=1))
