"""`python -m glowserve_service.healthcheck [HOST:PORT]`: exit code 0 if the service is SERVING, else 1.

It reads the service's own variables. If $GLOWSERVE_TLS_CERT is set, it connects by TLS and trusts exactly that
certificate, whatever host names it has. To a service that requires client certificates ($GLOWSERVE_TLS_CLIENT_CA) it
presents $GLOWSERVE_CERT and $GLOWSERVE_KEY, or else the service's own certificate.
"""

from __future__ import annotations

import socket
import ssl
import sys
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from glowserve.credentials import channel_credentials, proxy_options
from glowserve_service.config import ServiceConfig
from glowserve_service.environment import read

_TIMEOUT_SECONDS = 2.0


def is_serving(target: str) -> bool:
    """Calls grpc.health.v1.Health/Check of the service at HOST:PORT. False if that fails, too."""
    try:
        with _channel(target) as channel:
            answer = health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(), timeout=_TIMEOUT_SECONDS
            )
    except (grpc.RpcError, OSError, ValueError, KeyError):
        return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def default_target() -> str:
    """HOST:PORT of the service with the same variables."""
    host = read("GLOWSERVE_HOST").strip("[]") or "127.0.0.1"
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    port = read("GLOWSERVE_GRPC_PORT") or str(ServiceConfig.port)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _channel(target: str) -> grpc.Channel:
    options = proxy_options(target)
    certificate = read("GLOWSERVE_TLS_CERT")
    if not certificate:
        return grpc.insecure_channel(target, options)
    cert, key = read("GLOWSERVE_CERT"), read("GLOWSERVE_KEY")
    if not cert and read("GLOWSERVE_TLS_CLIENT_CA"):
        cert, key = certificate, read("GLOWSERVE_TLS_KEY")
    credentials = channel_credentials(tls=True, ca=certificate, cert=cert or None, key=key or None)
    assert credentials is not None
    name = _certified_name(target, certificate)
    return grpc.secure_channel(target, credentials, [*options, ("grpc.ssl_target_name_override", name)])


def _certified_name(target: str, certificate: str) -> str:
    """A host name of the certificate. The service at HOST:PORT presents it, or this raises OSError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.load_verify_locations(certificate)
    host, _, port = target.rpartition(":")
    with (
        socket.create_connection((host.strip("[]"), int(port)), _TIMEOUT_SECONDS) as connection,
        context.wrap_socket(connection) as encrypted,
    ):
        presented: Any = encrypted.getpeercert()
    names = dict(presented["subjectAltName"])
    name: str = names.get("DNS") or names["IP Address"]
    return name.replace("*", "any")


if __name__ == "__main__":
    sys.exit(0 if is_serving(sys.argv[1] if len(sys.argv) > 1 else default_target()) else 1)
