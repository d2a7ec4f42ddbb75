"""`python -m service.healthcheck [HOST:PORT]`: exit code 0 if the service says SERVING, 1 if not."""

from __future__ import annotations

import os
import sys

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

_TIMEOUT_SECONDS = 2.0


def is_serving(target: str) -> bool:
    """Asks grpc.health.v1 of the service at HOST:PORT."""
    with grpc.insecure_channel(target) as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(), timeout=_TIMEOUT_SECONDS
            )
        except grpc.RpcError:
            return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


if __name__ == "__main__":
    default = f"127.0.0.1:{os.environ.get('GLOWSERVE_GRPC_PORT', '8001')}"
    sys.exit(0 if is_serving(sys.argv[1] if len(sys.argv) > 1 else default) else 1)
