"""Fixtures for the tests of the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
from glowserve_service.server import Server


@pytest.fixture(params=["model", "server", "both"])
def target(request: pytest.FixtureRequest, server: Server, repository: Path) -> list[str]:
    """The flags that select the shared model: as a bundle, on a server, and by its name on a server."""
    address = f"127.0.0.1:{server.port}"
    return {
        "model": ["--model", str(repository / "digits")],
        "server": ["--server", address],
        "both": ["--server", address, "--model", "digits"],
    }[request.param]
