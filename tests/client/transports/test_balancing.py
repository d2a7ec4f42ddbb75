"""A client of several servers under one name: calls take turns, and go on when a server ends."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

import glowserve
from glowserve.images import UInt8Array
from tests.servers import ServerProcess, StartServer

CALLS = 200


@pytest.fixture
def three(start_server: StartServer) -> Iterator[list[ServerProcess]]:
    with ExitStack() as stack:
        yield [stack.enter_context(start_server("--instances", "1")) for _ in range(3)]


def target(servers: list[ServerProcess]) -> str:
    return "ipv4:" + ",".join(server.target for server in servers)


def answered(server: ServerProcess) -> float:
    return server.metric("glowserve_requests_total")


def test_calls_take_turns_and_none_is_lost_when_a_server_is_killed_and_another_stopped(
    three: list[ServerProcess], digits: UInt8Array
) -> None:
    killed, stopped, last = three
    with glowserve.Client(target(three)) as client:
        for _ in range(CALLS):
            client.score(digits[:1])
        counts = [answered(server) for server in three]
        assert sum(counts) == CALLS
        assert max(counts) - min(counts) <= 0.1 * CALLS / 3
        os.kill(killed.process.pid, signal.SIGKILL)
        for _ in range(CALLS):
            client.score(digits[:1])
        shares = [answered(stopped) - counts[1], answered(last) - counts[2]]
        assert sum(shares) == CALLS
        assert abs(shares[0] - shares[1]) <= 0.1 * CALLS / 2
        stopped.process.terminate()
        for _ in range(CALLS):
            client.score(digits[:1])
        assert answered(last) - counts[2] - shares[1] > 0.9 * CALLS
