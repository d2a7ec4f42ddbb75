"""Which calls a token allows, and a warning about settings that allow calls to everybody."""

from __future__ import annotations

from typing import Any

from grpc_health.v1.health import SERVICE_NAME as HEALTH_NAME

from glowserve.credentials import is_loopback
from glowserve.runtime.errors import GlowserveError
from glowserve_service.config import ServiceConfig
from glowserve_service.security.tokens import Tokens

_ADMIN_METHODS = frozenset({"LoadModel", "UnloadModel", "RepositoryModelLoad", "RepositoryModelUnload"})
# Orchestrators have no token.
_OPEN_METHODS = frozenset({"ServerLive", "ServerReady"})


def refusal(tokens: Tokens | None, call: Any) -> GlowserveError | None:
    """Why a gRPC call, of which only the headers have been read, is refused; None if it is accepted.

    Health and readiness need no token: orchestrators have none.
    """
    if tokens is None:
        return None
    service, _, method = call.method.removeprefix("/").rpartition("/")
    if service == HEALTH_NAME or method in _OPEN_METHODS:
        return None
    try:
        sent = dict(call.invocation_metadata).get("authorization", "")
        tokens.check(sent, "admin" if method in _ADMIN_METHODS else "infer")
    except GlowserveError as error:
        return error
    return None


def warning(config: ServiceConfig) -> str | None:
    """A sentence about what is dangerous in these settings, with the remedy; None if nothing is."""
    missing = []
    if config.tls_cert is None:
        missing.append("calls are not encrypted (give --tls-cert and --tls-key)")
    if config.tokens is None and config.tls_client_ca is None:
        admin = ", load and unload models" if config.admin == "on" else ""
        missing.append(f"whoever reaches it may call{admin} (give --tokens, or --tls-client-ca)")
    if is_loopback(config.host) or not missing:
        return None
    return f"{config.host} can be reached from outside this machine, and {' and '.join(missing)}"
