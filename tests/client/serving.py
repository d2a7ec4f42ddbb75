"""Servers for tests of the clients: a scripted GlowService, and waiting for the real one."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
from glowserve_service.server import Server

from glowserve.v1 import glow_service_pb2_grpc
from tests.service.wire import wait_for


@contextmanager
def serve(servicer: glow_service_pb2_grpc.GlowServiceServicer, port: int = 0) -> Iterator[str]:
    """Serves a scripted servicer on a port of loopback, 0 for a free one; yields HOST:PORT."""
    with ThreadPoolExecutor() as pool:
        server = grpc.server(pool)
        glow_service_pb2_grpc.add_GlowServiceServicer_to_server(servicer, server)
        port = server.add_insecure_port(f"127.0.0.1:{port}")
        server.start()
        yield f"127.0.0.1:{port}"
        server.stop(None).wait()


def address(server: Server) -> str:
    """HOST:PORT of a real server."""
    return f"127.0.0.1:{server.port}"


def wait_until_idle(server: Server) -> None:
    """Returns when a real server has no open call and no image in a queue."""
    value = server.metrics.registry.get_sample_value
    queue = {"model": "digits", "direction": "forward"}
    wait_for(lambda: not value("glowserve_requests_in_flight") and not value("glowserve_queue_length", queue))


def ended_calls(server: Server, method: str, code: str) -> float:
    """How many calls of a method a real server has ended with a code."""
    labels = {"method": method, "model": "digits", "code": code}
    return server.metrics.registry.get_sample_value("glowserve_requests_total", labels) or 0
