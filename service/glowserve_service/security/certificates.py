"""The service's certificate and key, and the authority of its clients."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from glowserve.credentials import read_authority, read_pair
from glowserve_service.security.expiry import Validity, validity
from glowserve_service.security.reloaded_files import ReloadedFiles


@dataclass(frozen=True)
class _Loaded:
    context: ssl.SSLContext
    pair: tuple[bytes, bytes]
    client_ca: bytes | None
    validity: tuple[Validity, ...]


class Certificates:
    """The service's certificate, its key, and the authority of its clients, if they need certificates.

    Args:
        certificate: PEM, with the chain.
        key: PEM.
        client_ca: PEM; if given, a client must present a certificate that this authority has signed.

    The log says when a file is expired, not yet valid, or near its end, each time that it is read.

    Raises:
        ValueError: a file cannot be used.
    """

    def __init__(self, certificate: Path, key: Path, client_ca: Path | None) -> None:
        def read() -> _Loaded:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            pair = read_pair(context, certificate, key)
            found, authority = validity("tls_cert", certificate, pair[0]), None
            if client_ca is not None:
                context.verify_mode = ssl.CERT_REQUIRED
                authority = read_authority(context, client_ca)
                found += validity("tls_client_ca", client_ca, authority)
            for each in found:
                each.log()
            return _Loaded(context, pair, authority, tuple(found))

        self._with_clients = client_ca is not None
        self._files = ReloadedFiles([path for path in (certificate, key, client_ca) if path], read)

    def validity(self) -> tuple[Validity, ...]:
        """When the certificate and the authority expire. Reads changed files again."""
        return self._files.current().validity

    def log_validity(self) -> None:
        """Logs which of them is expired, not yet valid, or near its end."""
        for each in self.validity():
            each.log()

    def context(self) -> ssl.SSLContext:
        """The context of a connection to the port of the metrics."""
        return self._files.current().context

    def credentials(self) -> grpc.ServerCredentials:
        """The credentials of gRPC's port; for each connection they check whether the files have changed."""
        given = self._files.current()

        def configuration(loaded: _Loaded) -> grpc.ServerCertificateConfiguration:
            chain, key = loaded.pair
            return grpc.ssl_server_certificate_configuration([(key, chain)], loaded.client_ca)

        def changed() -> Any:
            nonlocal given
            if (loaded := self._files.current()) is given:
                return None
            given = loaded
            return configuration(loaded)

        return grpc.dynamic_ssl_server_credentials(configuration(given), changed, self._with_clients)
