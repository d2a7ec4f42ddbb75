"""The limit of file descriptors, and a service that has few of them among many silent clients."""

from __future__ import annotations

import os
import socket
import sys
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import grpc
import pytest
from glowserve_service.front import front
from glowserve_service.observability import descriptors

from glowserve.v1 import glow_service_pb2 as pb
from tests.servers import RunServer, ServerProcess, StartServer
from tests.service.credentials import Authority
from tests.service.marks import patches_the_front
from tests.service.scraping import value
from tests.service.stubs import connect
from tests.service.wire import wait_for

PROGRAM = str(Path(__file__).parents[1] / "programs" / "serve_with_descriptors.py")
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers in this process admit 32 connections, and close silent and idle ones after a second."""
    monkeypatch.setattr(descriptors, "limit", lambda: 64)
    monkeypatch.setattr(front, "_HANDSHAKE_MS", 1000)
    monkeypatch.setattr(front, "_IDLE_MS", 1000)


def open_descriptors(server: ServerProcess) -> int:
    return sum(1 for _ in Path(f"/proc/{server.process.pid}/fd").iterdir())


def processor_seconds(server: ServerProcess) -> float:
    fields = Path(f"/proc/{server.process.pid}/stat").read_text().rpartition(")")[2].split()
    user, system = fields[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


@patches_the_front
def test_silent_connections_leave_a_service_with_few_descriptors_room_to_work(
    start_server: StartServer,
) -> None:
    """A hundred connections, and 64 descriptors: a call gets in when gRPC closes the silent ones."""
    with start_server(program=(PROGRAM, "64", "64")) as server, ExitStack() as stack:
        host, _, port = server.target.rpartition(":")
        for _ in range(100):
            stack.enter_context(socket.create_connection((host, int(port)), 60))
        began, taken = time.monotonic(), processor_seconds(server)
        wait_for(lambda: open_descriptors(server) > 40)
        assert value(server.metrics_url, "descriptors_short") == 1
        with connect(server.target) as stubs:
            assert stubs.glow.ListModels(pb.ListModelsRequest(), wait_for_ready=True, timeout=60).models
        assert time.monotonic() - began < 40
        assert processor_seconds(server) - taken < 2
        wait_for(lambda: value(server.metrics_url, "descriptors_short") == 0)
        time.sleep(1)
        log = server.stop()
    assert "may open only 64 files and admits 32 connections; raise the limit of open files" in log
    assert "file descriptors are short, and connections may be refused" in log
    assert "no longer short" in log
    assert "File descriptor limit reached" not in log  # gRPC's own line: it would try to accept once a second


def test_a_service_raises_its_limit_to_what_the_system_allows(start_server: StartServer) -> None:
    with start_server(program=(PROGRAM, "64", "4096")) as server:
        assert server.metric("process_max_fds") == 4096
        assert "raise the limit" not in server.stop()


@pytest.mark.parametrize("encrypted", [False, True])
def test_a_handshake_has_an_end(
    run_server: RunServer, few: None, authority: Authority, encrypted: bool
) -> None:
    """The client connects, and sends nothing, or the beginning of a handshake."""
    with run_server(**(authority.settings() if encrypted else {})) as server:
        for begin in (b"", b"\x16\x03\x01" if encrypted else b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"):
            with socket.create_connection(("localhost", server.port), 60) as connection:
                connection.sendall(begin)
                began = time.monotonic()
                while connection.recv(1000):
                    pass
                assert time.monotonic() - began < 20


@patches_the_front
def test_idle_connections_make_room_where_descriptors_are_few(run_server: RunServer, few: None) -> None:
    """They are complete connections of HTTP/2, and have no call."""
    with run_server() as server, ExitStack() as stack:
        connections = []
        for _ in range(60):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), 20))
            connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
            connections.append(connection)
        with connect(server) as stubs:
            assert stubs.glow.ListModels(pb.ListModelsRequest(), wait_for_ready=True, timeout=60).models
        for connection in connections:
            with suppress(ConnectionResetError):
                while connection.recv(1000):
                    pass


@patches_the_front
def test_a_connection_over_the_limit_is_closed_at_once(run_server: RunServer, few: None) -> None:
    with run_server() as server, ExitStack() as stack:
        stubs = [stack.enter_context(connect(server)) for _ in range(32)]
        watches = [each.watch() for each in stubs]
        for watch in watches:
            next(watch)
        with connect(server, [("grpc.enable_retries", 0)]) as late:
            with pytest.raises(grpc.RpcError) as refused:
                late.glow.ListModels(pb.ListModelsRequest(), timeout=60)
            assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
            watches.pop().cancel()
            stubs.pop().channel.close()
            assert late.glow.ListModels(pb.ListModelsRequest(), wait_for_ready=True, timeout=60).models
        for watch in watches:
            watch.cancel()
