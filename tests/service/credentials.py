"""Certificates and tokens for tests, and calls that show them."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import grpc
import trustme
from glowserve_service.server import Server

from glowserve.credentials import call_metadata, channel_credentials
from glowserve.v1 import glow_service_pb2 as pb
from glowserve.v1.glow_service_pb2_grpc import GlowServiceStub
from tests.service.stubs import address

INFER = "infer-0123456789-0123456789"
ADMIN = "admin-0123456789-0123456789"
METRICS = "metrics-0123456789-0123456789"
TOKENS = f"""# who may call
app {INFER}
operator {ADMIN} infer,admin

prometheus {METRICS} metrics
"""


class Authority:
    """Signs certificates, in a folder."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._ca, self._folder = trustme.CA(), folder
        self.file = folder / "ca.pem"
        self._ca.cert_pem.write_to_path(self.file)

    def pair(
        self, name: str, *hosts: str, begins: datetime | None = None, expires: datetime | None = None
    ) -> tuple[Path, Path]:
        """A new certificate and its key, written to NAME.pem and NAME.key.

        Args:
            name: of the files.
            hosts: for which it is; this machine if there are none.
            begins: when it begins to be valid; long ago if not given.
            expires: when it ends to be valid; in some years if not given.
        """
        names = hosts or ("localhost", "127.0.0.1", "::1")
        issued = self._ca.issue_cert(*names, not_before=begins, not_after=expires)
        certificate, key = self._folder / f"{name}.pem", self._folder / f"{name}.key"
        certificate.write_bytes(b"".join(part.bytes() for part in issued.cert_chain_pems))
        key.write_bytes(issued.private_key_pem.bytes())
        return certificate, key

    def settings(self) -> dict[str, Any]:
        """Settings of a server with a certificate of this authority."""
        certificate, key = self.pair("server")
        return {"tls_cert": certificate, "tls_key": key}


def models(
    server: Server,
    *,
    token: str | None = None,
    tls: bool = False,
    ca: Path | None = None,
    cert: Path | None = None,
    key: Path | None = None,
) -> list[str]:
    """The names of the models, asked for over a new connection and without retries.

    Raises:
        grpc.RpcError: the call failed.
    """
    credentials = channel_credentials(tls=tls, ca=ca, cert=cert, key=key)
    metadata = call_metadata(token, address(server), encrypted=credentials is not None)
    if credentials is None:
        channel = grpc.insecure_channel(address(server))
    else:
        channel = grpc.secure_channel(address(server), credentials)
    with channel:
        call = GlowServiceStub(channel).ListModels
        response = call(pb.ListModelsRequest(), metadata=metadata, timeout=60)
        return [each.model.name for each in response.models]
