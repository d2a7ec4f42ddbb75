"""What the tests of the service share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from glowserve_service.server import Server

from glowserve.v1.glow_service_pb2_grpc import GlowServiceStub
from tests.service.credentials import TOKENS, Authority
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


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    """Signs certificates that servers and clients trust."""
    return Authority(tmp_path / "authority")


@pytest.fixture
def other_authority(tmp_path: Path) -> Authority:
    """Signs certificates that nobody trusts who trusts `authority` alone."""
    return Authority(tmp_path / "other_authority")


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    """A file with three tokens."""
    path = tmp_path / "tokens"
    path.write_text(TOKENS)
    return path
