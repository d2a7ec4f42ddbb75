"""Fixtures for the tests of the clients."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from glowserve_service.server import Server

import glowserve
from tests.client.blocking import BlockingClient, Connect
from tests.service.stubs import address

CLIENTS: dict[str, Any] = {"server": glowserve.Client, "asyncio": BlockingClient}


@pytest.fixture(params=["server", "embedded", "asyncio"])
def answering(request: pytest.FixtureRequest) -> Iterator[glowserve.Client]:
    """The shared model behind each client: a server's Client, an open bundle, and a server's AsyncClient."""
    if request.param == "embedded":
        yield request.getfixturevalue("embedded")
        return
    server: Server = request.getfixturevalue("server")
    with CLIENTS[request.param](address(server)) as client:
        yield client


@pytest.fixture(params=CLIENTS)
def connect(request: pytest.FixtureRequest) -> Connect:
    """Makes a client of a service, a Client or an AsyncClient."""
    connect: Connect = CLIENTS[request.param]
    return connect
