"""Bytes as they go over a connection: to the gRPC port, and to the metrics port."""

from __future__ import annotations

from tests.soak.fuzz.methods import GLOW

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_HEADERS, _RST_STREAM, _SETTINGS, _PING, _WINDOW_UPDATE, _CONTINUATION, _DATA = 1, 3, 4, 6, 8, 9, 0
_END_HEADERS = 4


def grpc_bytes() -> list[bytes]:
    """HTTP/2 connections with a whole call and other frames, and the begin of a TLS handshake."""
    path = f"/{GLOW}/ListModels".encode()
    call, headers = call_of(path), _headers(path)
    others = _frame(_PING, 0, 0, bytes(8)) + _frame(_WINDOW_UPDATE, 0, 0, b"\0\0\x10\0")
    others += _frame(_RST_STREAM, 0, 1, bytes(4))
    frame_size = _frame(_SETTINGS, 0, 0, b"\0\x05\0\xff\xff\xff")
    return [
        call,
        call + others,
        _PREFACE + frame_size + call.removeprefix(_PREFACE) + _frame(_CONTINUATION, _END_HEADERS, 1, headers),
        b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03" + bytes(512),
    ]


def call_of(path: bytes) -> bytes:
    """A connection with one call of a method, /SERVICE/METHOD, whose request is empty."""
    frames = _frame(_SETTINGS, 0, 0, b"")
    frames += _frame(_HEADERS, _END_HEADERS, 1, _headers(path)) + _frame(_DATA, 1, 1, bytes(5))
    return _PREFACE + frames


def http_bytes() -> list[bytes]:
    """HTTP/1 requests, valid and unusual."""
    openmetrics = b"application/openmetrics-text; version=1.0.0; q=0.5"
    return [
        b"GET /metrics HTTP/1.1\r\nHost: a\r\nAccept: " + openmetrics + b"\r\n\r\n",
        b"GET /metrics?name[]=glowserve_ready&name[]=%ff HTTP/1.0\r\nAccept-Encoding: gzip\r\n\r\n",
        b"HEAD / HTTP/1.1\r\nHost: a\r\nConnection: keep-alive\r\n\r\n",
        b"POST /metrics HTTP/1.1\r\nContent-Length: 5\r\nContent-Type: a/b\r\n\r\nhello",
        b"OPTIONS * HTTP/1.1\r\nExpect: 100-continue\r\n\r\n",
        b"GET /metrics\r\n",
        b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 120 + b"\r\n",
    ]


def _headers(path: bytes) -> bytes:
    headers = b"\x83\x86\x04" + _text(path) + b"\x01" + _text(b"localhost")
    headers += b"\0" + _text(b"content-type") + _text(b"application/grpc")
    return headers + b"\0" + _text(b"te") + _text(b"trailers")


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def _text(value: bytes) -> bytes:
    return bytes((len(value),)) + value
