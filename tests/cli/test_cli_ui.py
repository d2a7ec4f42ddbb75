"""`glowserve ui` as a process: it starts, says why it cannot, and ends at once."""

from __future__ import annotations

import signal
import socket
import sys
import threading
import time

import pytest
from glowserve_service.server import Server

from glowserve.cli import main
from tests.servers import free_port
from tests.service.stubs import address
from tests.ui.http_requests import ask
from tests.ui.serving import start_pages


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_at_once_whatever_is_outstanding(server: Server, number: signal.Signals) -> None:
    with start_pages("--server", address(server)) as (process, url):
        assert ask(url, "/sample?n=1").status == 200
        host, _, port = url.removeprefix("http://").partition(":")
        with socket.create_connection((host, int(port))) as upload:
            head = b"POST /score HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n"
            upload.sendall(head + b"Content-Type: multipart/form-data; boundary=limit\r\n\r\n--limit")
            began = time.monotonic()
            process.send_signal(number)
            _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")
    assert time.monotonic() - began < 5


def test_it_listens_on_loopback_alone(server: Server) -> None:
    with start_pages("--server", address(server)) as (_, url):
        assert url.startswith("http://127.0.0.1:")
        port = int(url.rpartition(":")[2])
        with socket.socket() as other, pytest.raises(ConnectionRefusedError):
            other.connect(("127.0.0.2", port))


def test_a_port_in_use_is_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert _main("--port", str(port)) == 2
    expected = f"glowserve: port {port} of 127.0.0.1 is in use: pass another --port, or 0 for a free one\n"
    assert capsys.readouterr().err == expected


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (("--port", "70000"), "--port is 70000; it must lie in 0 to 65535"),
        (("--host", "192.0.2.1"), "the page cannot listen on 192.0.2.1, port 8003: "),
        (("--host", "no such host"), "the page cannot listen on no such host, port 8003: "),
        (("--server", "http://localhost:8001"), "target is 'http://localhost:8001', a URL; pass HOST:PORT"),
        (("--token-file", "/missing"), "token file /missing cannot be read: No such file or directory"),
        (("--ca", "/missing"), "certificate authority /missing cannot be read: No such file or directory"),
    ],
)
def test_a_flag_that_cannot_be_used_is_a_sentence(
    flags: tuple[str, ...], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _main(*flags) == 2
    assert capsys.readouterr().err.startswith(f"glowserve: {sentence}")


def test_without_its_extra_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [each for each in sys.modules if each.startswith(("glowserve.ui", "glowserve.cli.ui"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    assert _main() == 2
    expected = "glowserve: ui needs aiohttp, which is not installed: pip install 'glowserve[ui]'\n"
    assert capsys.readouterr().err == expected


def test_it_starts_without_a_service(capsys: pytest.CaptureFixture[str]) -> None:
    with start_pages("--server", f"127.0.0.1:{free_port()}") as (_, url):
        assert ask(url, "/static/ui.js").status == 200


def _main(*flags: str) -> int:
    """Runs the command in this process, and puts the handlers of signals back."""
    assert threading.current_thread() is threading.main_thread()
    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        return main(["ui", *flags])
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
