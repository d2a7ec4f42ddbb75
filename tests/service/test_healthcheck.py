"""The health check of the container, against servers with any certificate, tokens, and certificates of clients."""

from __future__ import annotations

from pathlib import Path

import pytest
from glowserve_service.healthcheck import is_serving
from glowserve_service.server import Server

from tests.servers import RunServer
from tests.service.credentials import Authority
from tests.service.stubs import address


def test_a_server_is_serving_and_a_port_without_one_is_not(server: Server) -> None:
    assert is_serving(address(server))
    assert not is_serving("127.0.0.1:1")


@pytest.mark.parametrize("hosts", [(), ("glow.example",), ("*.glow.example",)])
@pytest.mark.parametrize("mutual", [False, True])
def test_the_check_works_with_a_certificate_for_any_host(
    run_server: RunServer,
    authority: Authority,
    other_authority: Authority,
    tokens: Path,
    monkeypatch: pytest.MonkeyPatch,
    hosts: tuple[str, ...],
    mutual: bool,
) -> None:
    cert, key = authority.pair("server", *hosts)
    client_ca = other_authority.file if mutual else None
    with run_server(tls_cert=cert, tls_key=key, tls_client_ca=client_ca, tokens=tokens) as server:
        target = address(server)
        assert not is_serving(target)
        monkeypatch.setenv("GLOWSERVE_TLS_CERT", str(cert))
        if mutual:
            monkeypatch.setenv("GLOWSERVE_TLS_KEY", str(key))
            monkeypatch.setenv("GLOWSERVE_TLS_CLIENT_CA", str(other_authority.file))
            assert not is_serving(target)  # clients need a certificate of the other authority
            pair = other_authority.pair("probe", "probe.example")
            for name, path in zip(("CERT", "KEY"), pair, strict=True):
                monkeypatch.setenv(f"GLOWSERVE_{name}", str(path))
        assert is_serving(target)
        monkeypatch.setenv("GLOWSERVE_TLS_CERT", str(other_authority.pair("other")[0]))
        assert not is_serving(target)


def test_the_check_presents_the_certificate_of_the_service_if_it_has_no_other(
    run_server: RunServer, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    with run_server(**authority.settings(), tls_client_ca=authority.file) as server:
        for name in ("tls_cert", "tls_key", "tls_client_ca"):
            monkeypatch.setenv(f"GLOWSERVE_{name.upper()}", str(getattr(server.config, name)))
        assert is_serving(address(server))
