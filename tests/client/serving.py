"""Servers for tests of the clients: a scripted GlowService, one that is late, and waiting for the real one."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

import grpc
from glowserve_service.server import Server
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from glowserve.v1 import glow_service_pb2_grpc
from tests.service.metrics import in_flight, queue_length
from tests.service.wire import wait_for


@contextmanager
def serve(servicer: glow_service_pb2_grpc.GlowServiceServicer) -> Iterator[str]:
    """Serves a scripted servicer on loopback; yields HOST:PORT."""
    with ThreadPoolExecutor() as pool:
        server = grpc.server(pool)
        glow_service_pb2_grpc.add_GlowServiceServicer_to_server(servicer, server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        yield f"127.0.0.1:{port}"
        server.stop(None).wait()


def refusal(code: str, seconds: float | None) -> Any:
    """A status as the service sends it, with the pause before a retry, if there is one."""
    status = status_pb2.Status(code=grpc.StatusCode[code].value[0], message="not now")
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason="QUEUE_FULL", domain="glowserve"))
    if seconds is not None:
        delay = Duration()
        delay.FromNanoseconds(round(1e9 * seconds))
        status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=delay))
    return rpc_status.to_status(status)


@contextmanager
def after_a_failed_connection(target: str) -> Iterator[str]:
    """Yields another HOST:PORT of a server, where the first connection is closed and later ones are forwarded."""
    host, _, port = target.rpartition(":")

    def copy(source: socket.socket, destination: socket.socket) -> None:
        with suppress(OSError), source, destination:
            while data := source.recv(2**16):
                destination.sendall(data)

    def forward() -> None:
        with suppress(OSError):  # the listener has been closed
            listener.accept()[0].close()
            while True:
                client, _ = listener.accept()
                server = socket.create_connection((host, int(port)))
                threading.Thread(target=copy, args=(client, server), daemon=True).start()
                threading.Thread(target=copy, args=(server, client), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=forward, daemon=True).start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)


def wait_until_idle(server: Server) -> None:
    """Returns when a real server has no open call and no image in a queue."""
    wait_for(lambda: not in_flight(server) and not queue_length(server))
