"""A TCP proxy that counts what goes through it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass


@dataclass
class Traffic:
    """What clients have sent so far."""

    port: int
    """Of the proxy."""
    connections: int = 0
    bytes: int = 0


@contextmanager
def proxy(port: int) -> Iterator[Traffic]:
    """Forwards connections to a port of this machine."""
    listener = socket.create_server(("127.0.0.1", 0))
    traffic = Traffic(listener.getsockname()[1])

    def copy(source: socket.socket, target: socket.socket, *, count: bool) -> None:
        with source, target:
            with suppress(OSError):
                while data := source.recv(2**16):
                    traffic.bytes += len(data) if count else 0
                    target.sendall(data)
            for side in (source, target):
                with suppress(OSError):
                    side.shutdown(socket.SHUT_RDWR)

    def accept() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            traffic.connections += 1
            server = socket.create_connection(("127.0.0.1", port))
            for ends, count in (((client, server), True), ((server, client), False)):
                threading.Thread(target=copy, args=ends, kwargs={"count": count}, daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield traffic
    finally:
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
