"""Stubs of the services of a server: GlowService, the Open Inference Protocol, health."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import grpc
from glowserve_service.server import Server
from grpc_health.v1 import health_pb2, health_pb2_grpc

from glowserve.oip.grpc_service_pb2_grpc import GRPCInferenceServiceStub
from glowserve.v1.glow_service_pb2_grpc import GlowServiceStub

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class Stubs:
    """All of them, on one channel."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.channel = channel
        self.glow = GlowServiceStub(channel)
        self.inference = GRPCInferenceServiceStub(channel)
        self.health = health_pb2_grpc.HealthStub(channel)

    def status(self, name: str = "") -> Any:
        """What health answers about a service or model; "" stands for the whole server."""
        return self.health.Check(health_pb2.HealthCheckRequest(service=name)).status

    def watch(self, name: str = "") -> Any:
        """What health answers about it, now and whenever that changes."""
        return self.health.Watch(health_pb2.HealthCheckRequest(service=name))


def address(server: Server) -> str:
    """HOST:PORT of gRPC of a server in this process."""
    return f"127.0.0.1:{server.port}"


@contextmanager
def connect(server: Server | str, options: Sequence[tuple[str, Any]] = ()) -> Iterator[Stubs]:
    """Stubs on a connection of their own.

    Args:
        server: one in this process, or HOST:PORT.
        options: of the channel.
    """
    target = server if isinstance(server, str) else address(server)
    with grpc.insecure_channel(target, [("grpc.use_local_subchannel_pool", 1), *options]) as channel:
        yield Stubs(channel)
