"""A method's name can be any bytes on the wire. grpcio 1.84 and 1.85 stop the whole server at one that is not UTF-8."""

from __future__ import annotations

import socket

import glowserve
from tests.servers import RunServer


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """A frame of HTTP/2."""
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def text(value: bytes) -> bytes:
    return bytes((len(value),)) + value


def call_of(path: bytes) -> bytes:
    """The bytes of a connection with one call, whose request is empty."""
    headers = b"\x83\x86\x04" + text(path) + b"\x01" + text(b"localhost")
    headers += (
        b"\0" + text(b"content-type") + text(b"application/grpc") + b"\0" + text(b"te") + text(b"trailers")
    )
    settings, message = frame(4, 0, 0, b""), frame(0, 1, 1, bytes(5))
    return b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + settings + frame(1, 4, 1, headers) + message


def test_a_method_whose_name_is_not_utf8_stops_no_server(run_server: RunServer) -> None:
    with run_server() as server:
        for path in (b"/glowserve.v1.GlowService/\xff\xfe", b"\xff", b"/glowserve.v1.GlowService/ListModels"):
            with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
                connection.sendall(call_of(path))
                assert connection.recv(1)  # the settings, at least
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(4096):
                    pass
        with glowserve.Client(f"127.0.0.1:{server.port}", timeout=30) as client:
            assert client.models()
