"""TLS: which certificates are trusted, those of clients, and those that are renewed while a server runs."""

from __future__ import annotations

import logging
import shutil
import socket
import ssl
import urllib.request
from typing import Any

import grpc
import numpy as np
import pytest

import glowserve
from glowserve.images import UInt8Array
from tests.servers import RunServer, StartServer
from tests.service.credentials import Authority, models
from tests.service.log_records import records_of
from tests.service.stubs import address
from tests.service.wire import refusal

UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
LOGGER = "glowserve_service.security.reloaded_files"


def serial_number(port: int, authority: Authority) -> str:
    """The serial number of the certificate that a port presents."""
    context = ssl.create_default_context(cafile=authority.file)
    with (
        socket.create_connection(("localhost", port), 60) as connection,
        context.wrap_socket(connection, server_hostname="localhost") as encrypted,
    ):
        presented: Any = encrypted.getpeercert()
        return str(presented["serialNumber"])


# Trust


async def test_both_clients_score_and_sample_over_tls(
    run_server: RunServer, authority: Authority, digits: UInt8Array
) -> None:
    with run_server(**authority.settings()) as server:
        with glowserve.Client(address(server), ca=authority.file) as client:
            scores, samples = client.score(digits[:4]), client.sample(4, seed=1, temperature=0.5)
        async with glowserve.AsyncClient(address(server), ca=authority.file) as other:
            other_scores = await other.score(digits[:4])
            other_samples = await other.sample(4, seed=1, temperature=0.5)
    np.testing.assert_array_equal(other_scores.log_likelihood, scores.log_likelihood)
    np.testing.assert_array_equal(other_samples.images, samples.images)
    assert samples.images.shape == (4, 8, 8, 1)


def test_a_port_with_tls_refuses_unencrypted_calls(run_server: RunServer, authority: Authority) -> None:
    with run_server(**authority.settings()) as server:
        assert models(server, ca=authority.file) == ["digits"]
        assert refusal(lambda: models(server))[0] is UNAVAILABLE


def test_a_client_trusts_its_authority_alone(
    run_server: RunServer, authority: Authority, other_authority: Authority
) -> None:
    with run_server(**authority.settings()) as server:
        for credentials in ({"ca": other_authority.file}, {"tls": True}):
            code, message = refusal(lambda more=credentials: models(server, **more))
            assert code is UNAVAILABLE
            assert "CERTIFICATE_VERIFY_FAILED" in message


def test_a_certificate_for_another_host_is_not_trusted(run_server: RunServer, authority: Authority) -> None:
    cert, key = authority.pair("server", "elsewhere.example")
    with run_server(tls_cert=cert, tls_key=key) as server:
        assert refusal(lambda: models(server, ca=authority.file))[0] is UNAVAILABLE


def test_mutual_tls_refuses_clients_without_a_certificate_of_the_authority(
    run_server: RunServer, authority: Authority, other_authority: Authority
) -> None:
    cert, key = authority.pair("client", "client.example")
    other_cert, other_key = other_authority.pair("client", "client.example")
    with run_server(**authority.settings(), tls_client_ca=authority.file) as server:
        assert models(server, ca=authority.file, cert=cert, key=key) == ["digits"]
        for credentials in ({}, {"cert": other_cert, "key": other_key}):
            code, _ = refusal(lambda more=credentials: models(server, ca=authority.file, **more))
            assert code is UNAVAILABLE


def has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
def test_both_ports_listen_on_ipv6_too(start_server: StartServer, authority: Authority) -> None:
    cert, key = authority.pair("server")
    with start_server("--host", "::1", "--tls-cert", str(cert), "--tls-key", str(key)) as server:
        assert server.target.startswith("[::1]:")
        with glowserve.Client(server.target, ca=authority.file) as client:
            assert client.models()
        context = ssl.create_default_context(cafile=authority.file)
        with urllib.request.urlopen(server.metrics_url, timeout=60, context=context) as response:
            assert response.status == 200


# Renewal


def test_new_connections_get_a_renewed_certificate_and_old_connections_go_on(
    run_server: RunServer, authority: Authority
) -> None:
    with run_server(**authority.settings()) as server:
        ports = (server.port, server.metrics_port)
        before = [serial_number(port, authority) for port in ports]
        assert before[0] == before[1]
        with glowserve.Client(address(server), ca=authority.file) as client:
            client.models()
            authority.pair("server")
            after = [serial_number(port, authority) for port in ports]
            client.models()
        assert after[0] == after[1] != before[0]
        assert models(server, ca=authority.file) == ["digits"]


@pytest.mark.parametrize("damage", ["half renewed", "deleted", "not PEM"])
def test_a_failed_renewal_is_logged_once_and_the_old_certificate_stays(
    run_server: RunServer, authority: Authority, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    with run_server(**authority.settings()) as server:
        before = serial_number(server.port, authority)
        cert, key = authority.pair("next")
        installed = cert.with_name("server.pem")
        if damage == "half renewed":
            shutil.copy(cert, installed)
        elif damage == "deleted":
            installed.unlink()
        else:
            installed.write_text("no certificate")
        with caplog.at_level(logging.INFO, LOGGER):
            for port in (server.port, server.port, server.metrics_port):
                assert serial_number(port, authority) == before
            (record,) = records_of(caplog, LOGGER)
            assert record.levelname == "ERROR"
            assert str(installed) in record.getMessage()
            shutil.copy(cert, installed)
            shutil.copy(key, key.with_name("server.key"))
            assert serial_number(server.port, authority) != before


def test_the_authority_of_clients_is_renewed_too(
    run_server: RunServer, authority: Authority, other_authority: Authority
) -> None:
    trusted = authority.file.with_name("clients.pem")
    shutil.copy(authority.file, trusted)
    cert, key = other_authority.pair("client", "client.example")
    with run_server(**authority.settings(), tls_client_ca=trusted) as server:
        code, _ = refusal(lambda: models(server, ca=authority.file, cert=cert, key=key))
        assert code is UNAVAILABLE
        shutil.copy(other_authority.file, trusted)
        assert models(server, ca=authority.file, cert=cert, key=key) == ["digits"]
