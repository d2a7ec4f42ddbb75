"""Targets of clients: what gRPC gets, and which targets are refused before a call."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import glowserve
from glowserve.cli import main
from glowserve.client.transports.target import resolved_target


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("localhost", "localhost:8001"),
        ("10.0.0.7", "10.0.0.7:8001"),
        ("glow.example.com", "glow.example.com:8001"),
        ("[::1]", "[::1]:8001"),
        *[
            (target, target)
            for target in (
                "localhost:1",
                "[::1]:65535",
                "[fe80::1%eth0]:8001",
                "my_service.namespace.svc:8001",
                "bücher.example:8001",
                "dns:///localhost:8001",
                "dns:localhost",
                "unix:/run/glow.sock",
                "unix:///run/glow.sock",
                "unix-abstract:glow",
                "ipv4:127.0.0.1:8001,127.0.0.2:8001",
                "ipv6:[::1]:8001",
                "xds:///glow",
            )
        ],
    ],
)
def test_a_target_without_a_port_gets_that_of_the_service(target: str, expected: str) -> None:
    assert resolved_target(target) == expected


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("", "pass HOST:PORT of a service, or a transport"),
        ("http://localhost:8001", "a URL; pass HOST:PORT, here 'localhost:8001'$"),
        ("http://localhost:8001/", "here 'localhost:8001'$"),
        ("grpc://host", "here 'host'$"),
        ("tcp://host:1", "here 'host:1'$"),
        ("https://host:443/v1", r"here 'host:443' and tls=True \(--tls\)"),
        ("grpcs://user:word@host:1", r"here 'host:1' and tls=True"),
        ("HTTP://[::1]:8001", r"here '\[::1\]:8001'$"),
        ("::1", r"in brackets: '\[::1\]:8001'"),
        ("fe80::1:8001", "in brackets"),
        ("localhost:8001/", "pass HOST:PORT of one service"),
        ("localhost/v1", "pass HOST:PORT of one service"),
        ("a:1,b:2", "pass HOST:PORT of one service"),
        (" localhost:8001", "pass HOST:PORT of one service"),
        ("localhost:8001\n", "pass HOST:PORT of one service"),
        ("local host", "pass HOST:PORT of one service"),
        ("[localhost]:8001", "pass HOST:PORT of one service"),
        ("[::1", "pass HOST:PORT of one service"),
        (":8001", "pass HOST:PORT of one service"),
        ("a:b:1", "the port is 'b:1'"),
        ("localhost:", "the port is '' and must lie in 1 to 65535"),
        ("localhost:0", "the port is '0'"),
        ("localhost:65536", "the port is '65536'"),
        ("localhost:grpc", "the port is 'grpc'"),
        ("localhost:-1", "the port is '-1'"),
        ("localhost:٣", "the port is '٣'"),
    ],
)
@pytest.mark.parametrize("kind", [glowserve.Client, glowserve.AsyncClient])
def test_a_target_that_cannot_be_meant_is_refused_at_once(kind: Any, target: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        kind(target)


@pytest.mark.parametrize("target", [None, b"localhost:1", 8001, ("localhost", 8001), Path("localhost:1")])
def test_a_target_must_be_text(target: Any) -> None:
    with pytest.raises(TypeError, match="pass a string, HOST:PORT"):
        glowserve.Client(target)


def test_the_command_line_names_a_wrong_target(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--server", "http://localhost:8001"]) == 2
    expected = "glowserve: target is 'http://localhost:8001', a URL; pass HOST:PORT, here 'localhost:8001'\n"
    assert capsys.readouterr().err == expected


def test_a_token_may_go_to_this_machine_without_a_port() -> None:
    glowserve.Client("localhost", token="t").close()
    with pytest.raises(ValueError, match=r"the token would travel to example\.com:8001 unencrypted"):
        glowserve.Client("example.com", token="t")
