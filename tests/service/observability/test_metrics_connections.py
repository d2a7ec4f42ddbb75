"""The metrics port among clients that are silent, slow, many, or send what is no request."""

from __future__ import annotations

import logging
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from glowserve_service.observability import metrics_server
from glowserve_service.observability.metrics_server import MetricsServer
from glowserve_service.security.certificates import Certificates
from prometheus_client import CollectorRegistry, Gauge

from tests.service.credentials import Authority
from tests.service.wire import wait_for

PROGRAM = Path(__file__).parents[1] / "programs" / "metrics_without_descriptors.py"
REQUEST = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n"
Serve = Callable[..., MetricsServer]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts a server whose page is of so many bytes."""
    with ExitStack() as stack:

        def started(size: int = 1000, certificates: Certificates | None = None) -> MetricsServer:
            registry = CollectorRegistry()
            Gauge("large", size * "x", registry=registry)
            server = MetricsServer("localhost", 0, registry, certificates, None)
            stack.callback(server.close)
            return server

        yield started


def connect(server: MetricsServer, receive_buffer: int = 0) -> socket.socket:
    family, kind, _, _, address = socket.getaddrinfo(
        "localhost", server.server_port, type=socket.SOCK_STREAM
    )[0]
    connection = socket.socket(family, kind)
    connection.settimeout(60)
    if receive_buffer:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    connection.connect(address)
    return connection


def scrape(server: MetricsServer, context: ssl.SSLContext | None = None) -> float:
    """How many seconds a scrape takes."""
    began = time.monotonic()
    url = f"{'https' if context else 'http'}://localhost:{server.server_port}/metrics"
    with urllib.request.urlopen(url, timeout=60, context=context) as response:
        assert b"large" in response.read()
    return time.monotonic() - began


def threads() -> int:
    """How many threads serve connections."""
    return sum("process_request_thread" in thread.name for thread in threading.enumerate())


def answer(connection: socket.socket) -> bytes:
    """All that a server sends until it closes the connection."""
    received = b""
    try:
        while part := connection.recv(2**16):
            received += part
    except ConnectionResetError:
        pass
    return received


@pytest.mark.parametrize("encrypted", [False, True])
def test_a_client_that_sends_a_byte_now_and_then_is_ended(
    serve: Serve, authority: Authority, monkeypatch: pytest.MonkeyPatch, encrypted: bool
) -> None:
    monkeypatch.setattr(metrics_server, "_CONNECTION_SECONDS", 1.0)
    pair = authority.settings()
    server = serve(certificates=Certificates(pair["tls_cert"], pair["tls_key"], None) if encrypted else None)
    began = time.monotonic()
    with connect(server) as connection, suppress(BrokenPipeError, ConnectionResetError):
        for i in range(512):
            connection.sendall(b"\x16\x03\x01\x02\x00"[i : i + 1] or b"\0" if encrypted else b"G")
            time.sleep(0.05)
    assert 0.9 < time.monotonic() - began < 20


def test_a_client_that_does_not_read_the_page_is_ended_and_logs_nothing(
    serve: Serve,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(metrics_server, "_CONNECTION_SECONDS", 1.0)
    server = serve(size=30_000_000)
    with caplog.at_level(logging.INFO), connect(server, receive_buffer=4096) as connection:
        connection.sendall(REQUEST)
        wait_for(lambda: len(server._ends) == 1)
        wait_for(lambda: not server._ends)
        assert len(answer(connection)) < 30_000_000
    assert caplog.text == capfd.readouterr().err == ""


@pytest.mark.parametrize("encrypted", [False, True])
def test_silent_clients_of_any_number_do_not_keep_a_scrape_out(
    serve: Serve, authority: Authority, encrypted: bool
) -> None:
    """Nor does their number of threads grow."""
    pair = authority.settings()
    server = serve(certificates=Certificates(pair["tls_cert"], pair["tls_key"], None) if encrypted else None)
    context = ssl.create_default_context(cafile=authority.file) if encrypted else None
    with ExitStack() as stack:
        for _ in range(300):
            stack.enter_context(connect(server))
        assert scrape(server, context) < 5
        assert threads() <= 64
        assert scrape(server, context) < 5
    wait_for(lambda: threads() == 0)


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"G" * 70_000 + b" / HTTP/1.1\r\n\r\n", 414),
        (b"GET / HTTP/1.1\r\n" + b"".join(b"h%d: x\r\n" % i for i in range(10_000)) + b"\r\n", 431),
        (b"GET / HTTP/1.1\r\nh: " + b"x" * 70_000 + b"\r\n\r\n", 431),
        (b"BREW / HTTP/1.1\r\n\r\n", 405),
        (b"POST / HTTP/1.1\r\nContent-Length: 1000000000000\r\n\r\nx", 405),
        (b"HEAD / HTTP/1.1\r\n\r\n", 405),
        (b"GET / HTTP/9.9\r\n\r\n", 505),
        (b"GET /\x1b[2J HTTP\r\n\r\n", 400),
        (b"\0\xff\r\n\r\n", 400),
    ],
)
def test_what_is_no_request_for_the_page_is_refused(serve: Serve, request_: bytes, status: int) -> None:
    server = serve()
    with connect(server) as connection:
        try:
            connection.sendall(request_)
        except OSError:  # it was refused before its end
            assert status in (414, 431)
        received = answer(connection)
    assert received[9:12] in (b"%d" % status, b"")
    assert received or status in (414, 431)
    assert scrape(server) < 5


def test_requests_in_a_row_get_one_answer(serve: Serve) -> None:
    server = serve()
    with connect(server) as connection:
        connection.sendall(100 * REQUEST)
        assert answer(connection).count(b"HTTP/1.0 200 OK") == 1


def test_pages_are_made_one_at_a_time(serve: Serve) -> None:
    """However many clients ask at once, one thread competes with calls for the interpreter."""
    server = serve()
    most, now, lock = 0, 0, threading.Lock()

    class Slow:
        def collect(self) -> Iterator[object]:
            nonlocal most, now
            with lock:
                now += 1
                most = max(most, now)
            time.sleep(0.02)
            with lock:
                now -= 1
            return iter(())

    registry = CollectorRegistry()
    registry.register(Slow())  # type: ignore[arg-type]
    server.set_app(metrics_server._guarded(metrics_server.make_wsgi_app(registry), None))
    with ExitStack() as stack:
        connections = [stack.enter_context(connect(server)) for _ in range(20)]
        for connection in connections:
            connection.sendall(REQUEST)
        assert all(b"200 OK" in answer(connection) for connection in connections)
    assert most == 1


@pytest.mark.skipif(sys.platform == "win32", reason="there is no limit of descriptors")
def test_without_descriptors_it_neither_spins_nor_dies() -> None:
    command = [sys.executable, str(PROGRAM)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            port = int(process.stdout.readline())
            with socket.create_connection(("127.0.0.1", port), 60) as connection:
                connection.sendall(REQUEST)
                process.stdin.write("free\n")  # after a second without descriptors
                process.stdin.flush()
                seconds = float(process.stdout.readline())
                assert b"200 OK" in answer(connection)
            assert seconds < 0.05
        finally:
            process.kill()
