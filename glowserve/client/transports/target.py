"""Checks the target of a client, HOST:PORT or a name that gRPC resolves."""

from __future__ import annotations

import ipaddress
import re

DEFAULT_PORT = 8001
"""The port of a target that names a host alone: that of `glowserve serve`."""

# The schemes that gRPC resolves itself (https://github.com/grpc/grpc/blob/master/doc/naming.md).
_RESOLVED = re.compile(r"(dns|unix|unix-abstract|vsock|ipv4|ipv6|xds|google-c2p):")
_URL = re.compile(r"([a-z][a-z0-9+.-]*)://([^/]*)", re.IGNORECASE)
_HOST_PORT = re.compile(r"(\[[^\[\]]+\]|[^:\[\]]+)(:(.*))?")
_ENCRYPTED = ("https", "grpcs")


def resolved_target(target: str) -> str:
    """The target for gRPC: HOST:PORT, with port 8001 if there is none, or a target with one of gRPC's own schemes.

    gRPC itself takes other text for the name of a host, which it looks for until the timeout.

    Raises:
        TypeError: the target is not a string.
        ValueError: the target is empty, a URL, or has no host or an impossible port.
    """
    if not isinstance(target, str):
        raise TypeError(f"target is {target!r}; pass a string, HOST:PORT of a service")
    if not target:
        raise ValueError("target is ''; pass HOST:PORT of a service, or a transport")
    if _RESOLVED.match(target):
        return target
    if url := _URL.match(target):
        tls = " and tls=True (--tls)" if url[1].lower() in _ENCRYPTED else ""
        host = url[2].rpartition("@")[2]
        here = f", here {host!r}" if host else ""
        raise ValueError(f"target is {target!r}, a URL; pass HOST:PORT{here}{tls}")
    if _is_ipv6(target):
        raise ValueError(
            f"target is {target!r}; an IPv6 address stands in brackets: '[{target}]:{DEFAULT_PORT}'"
        )
    parts = _HOST_PORT.fullmatch(target)
    if parts is None or re.search(r"[\s/,@?#\\]", target) or not _is_host(parts[1]):
        raise ValueError(f"target is {target!r}; pass HOST:PORT of one service, such as 'localhost:8001'")
    if parts[2] is None:
        return f"{target}:{DEFAULT_PORT}"
    if not (re.fullmatch(r"[0-9]{1,5}", parts[3]) and 1 <= int(parts[3]) <= 65535):
        raise ValueError(f"target is {target!r}; the port is {parts[3]!r} and must lie in 1 to 65535")
    return target


def _is_host(host: str) -> bool:
    return not host.startswith("[") or _is_ipv6(host[1:-1])


def _is_ipv6(host: str) -> bool:
    try:
        ipaddress.IPv6Address(host)
    except ValueError:
        return False
    return True
