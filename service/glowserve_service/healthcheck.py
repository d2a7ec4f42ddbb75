"""`python -m service.healthcheck [HOST:PORT]`: exit code 0 if the service says SERVING, 1 if not.

Where $GLOWSERVE_TLS_CERT says that the service encrypts, that certificate is the one that is trusted, whatever names it
is for. A service that asks its clients for certificates is shown $GLOWSERVE_CERT and $GLOWSERVE_KEY, or else its own.
"""

from __future__ import annotations

import os
import socket
import ssl
import sys
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from glowserve.credentials import channel_credentials

_TIMEOUT_SECONDS = 2.0


def is_serving(target: str) -> bool:
    """Asks grpc.health.v1 of the service at HOST:PORT."""
    try:
        with _channel(target) as channel:
            answer = health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(), timeout=_TIMEOUT_SECONDS
            )
    except (grpc.RpcError, OSError, ValueError, KeyError):
        return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def _channel(target: str) -> grpc.Channel:
    own = os.environ.get("GLOWSERVE_TLS_CERT")
    if not own:
        return grpc.insecure_channel(target)
    cert, key = (os.environ.get(f"GLOWSERVE_{name}") for name in ("CERT", "KEY"))
    if not cert and os.environ.get("GLOWSERVE_TLS_CLIENT_CA"):
        cert, key = own, os.environ.get("GLOWSERVE_TLS_KEY")
    credentials = channel_credentials(tls=True, ca=own, cert=cert or None, key=key or None)
    assert credentials is not None
    return grpc.secure_channel(
        target, credentials, [("grpc.ssl_target_name_override", _name_at(target, own))]
    )


def _name_at(target: str, certificate: str) -> str:
    """A name that the certificate is for, which is the one that the service has."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.load_verify_locations(certificate)
    host, _, port = target.rpartition(":")
    with (
        socket.create_connection((host.strip("[]"), int(port)), _TIMEOUT_SECONDS) as connection,
        context.wrap_socket(connection) as encrypted,
    ):
        shown: Any = encrypted.getpeercert()
    names = dict(shown["subjectAltName"])
    name: str = names.get("DNS") or names["IP Address"]
    return name.replace("*", "any")


if __name__ == "__main__":
    default = f"127.0.0.1:{os.environ.get('GLOWSERVE_GRPC_PORT', '8001')}"
    sys.exit(0 if is_serving(sys.argv[1] if len(sys.argv) > 1 else default) else 1)
