"""Reads and checks certificates, keys and tokens, and converts them to gRPC's credentials and metadata."""

from __future__ import annotations

import ipaddress
import os
import re
import ssl
from os import PathLike
from pathlib import Path

import grpc

# An IPv6 address stands in brackets there.
_HOST_AND_PORT = re.compile(r"(?P<host>\[.*\]|[^:]*):\d+")
FilePath = str | PathLike[str]
"""The path of a file."""


def read_pair(context: ssl.SSLContext, certificate: FilePath, key: FilePath) -> tuple[bytes, bytes]:
    """Reads a certificate chain and the key of its first certificate, both PEM, and loads them into a context.

    Args:
        context: gets the certificates and the key, which checks them.
        certificate: the file of the chain.
        key: the file of the key, without a password.

    Returns:
        The contents of both files.

    Raises:
        ValueError: a file cannot be read or is not PEM, or the key is not the certificate's.
    """
    pair = _read("certificate", certificate), _read("key", key)
    try:
        # Without a `password`, OpenSSL would ask for one on the terminal.
        context.load_cert_chain(os.fspath(certificate), os.fspath(key), password=lambda: "")
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise ValueError(
                f"key {key} does not belong to certificate {certificate}; give the two of a pair"
            ) from None
        raise ValueError(
            f"certificate {certificate} and key {key} cannot be used; give a certificate and its key, "
            "both PEM, the key without a password"
        ) from None
    return pair


def read_authority(context: ssl.SSLContext, path: FilePath) -> bytes:
    """Reads the certificates, PEM, of trusted authorities, and loads them into a context.

    Args:
        context: gets the certificates, which checks them.
        path: the file of the certificates.

    Returns:
        The contents of the file.

    Raises:
        ValueError: the file cannot be read, or is not PEM.
    """
    data = _read("certificate authority", path)
    try:
        context.load_verify_locations(cadata=data.decode())
    except (ssl.SSLError, ValueError):
        raise ValueError(f"certificate authority {path} cannot be used; give certificates in PEM") from None
    return data


def channel_credentials(
    *, tls: bool, ca: FilePath | None, cert: FilePath | None, key: FilePath | None
) -> grpc.ChannelCredentials | None:
    """The credentials of a client's channel; None for a channel without encryption. `Client` explains the arguments.

    Raises:
        ValueError: a file cannot be used, or there is a certificate without a key or a key without a certificate.
    """
    if (cert is None) != (key is None):
        raise ValueError("a client's certificate is of no use without its key; give both, cert and key")
    if not tls and ca is None and cert is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    roots = None if ca is None else read_authority(context, ca)
    chain, private = (None, None) if cert is None or key is None else read_pair(context, cert, key)
    return grpc.ssl_channel_credentials(roots, private, chain)


def call_metadata(token: str | None, target: str, *, encrypted: bool) -> tuple[tuple[str, str], ...]:
    """The metadata that authenticate each call; empty without a token.

    Args:
        token: the caller's token.
        target: where the calls go.
        encrypted: whether the channel is encrypted.

    Raises:
        ValueError: the token is malformed, or would cross a network unencrypted.
    """
    if token is None:
        return ()
    if not (token.isascii() and token.isprintable() and token) or " " in token:
        raise ValueError("the token is empty, or has other characters than letters, digits and signs")
    if not encrypted and not is_local(target):
        raise ValueError(
            f"the token would travel to {target} unencrypted; pass tls, or ca with the service's authority"
        )
    return (("authorization", f"Bearer {token}"),)


def proxy_options(target: str) -> list[tuple[str, int]]:
    """Options of a channel to a target: a target on this machine is reached without the proxies of the environment."""
    return [("grpc.enable_http_proxy", 0)] if is_local(target) else []


def is_loopback(host: str) -> bool:
    """Whether a host, a name or an IP address, is this machine's loopback interface."""
    address = _address(host)
    return host.lower().rstrip(".") == "localhost" if address is None else address.is_loopback


def is_local(target: str) -> bool:
    """Whether calls to a target, HOST:PORT, dns:///HOST:PORT, ipv4:HOST:PORT or unix:PATH, stay on this machine."""
    if target.startswith(("unix:", "unix-abstract:")):
        return True
    scheme = next((each for each in ("dns:///", "dns:", "ipv4:", "ipv6:") if target.startswith(each)), "")
    found = _HOST_AND_PORT.fullmatch(target.removeprefix(scheme))
    host = found["host"] if found else target.removeprefix(scheme)
    address = _address(host)
    # To connect to the address of all interfaces is to connect to this machine.
    return is_loopback(host) or (address is not None and address.is_unspecified)


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The IP address that a host is, with or without brackets; an IPv4 address that is written as IPv6 is IPv4."""
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def _read(what: str, path: FilePath) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ValueError(f"{what} {path} cannot be read: {error.strerror}") from None
