"""The HTTP server of the metrics: tokens, TLS, certificates of clients, silent clients, and its end."""

from __future__ import annotations

import logging
import socket
import ssl
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from glowserve_service.observability import metrics_server
from glowserve_service.observability.metrics_server import MetricsServer
from glowserve_service.server import Server
from prometheus_client import CollectorRegistry

from tests.servers import RunServer
from tests.service.credentials import INFER, METRICS, Authority


def scrape(server: Server, token: str | None = None, context: ssl.SSLContext | None = None) -> int:
    """The HTTP status of a scrape."""
    scheme = "http" if context is None else "https"
    request = urllib.request.Request(f"{scheme}://localhost:{server.metrics_port}/metrics")
    if token is not None:
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=60, context=context) as response:
            assert b"glowserve_" in response.read()
            return int(response.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code


def test_a_scrape_needs_a_token_if_one_is_for_metrics(
    run_server: RunServer, tokens: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG), run_server(tokens=tokens) as server:
        assert [scrape(server, token) for token in (None, "wrong", INFER, METRICS)] == [401, 401, 403, 200]
        tokens.write_text(f"app {INFER}\n")
        assert scrape(server) == 200
    assert INFER not in caplog.text
    assert METRICS not in caplog.text


def test_metrics_are_encrypted_as_calls_are_and_a_silent_client_does_not_delay_others(
    run_server: RunServer, authority: Authority, tokens: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics_server, "_CONNECTION_SECONDS", 600.0)
    context = ssl.create_default_context(cafile=authority.file)
    with run_server(**authority.settings(), tokens=tokens) as server:
        with socket.create_connection(("localhost", server.metrics_port)):
            assert scrape(server, METRICS, context) == 200
        with pytest.raises((urllib.error.URLError, ConnectionError, ssl.SSLError)):
            scrape(server, METRICS)


def test_a_scrape_needs_a_certificate_if_clients_need_one(
    run_server: RunServer, authority: Authority
) -> None:
    context = ssl.create_default_context(cafile=authority.file)
    with run_server(**authority.settings(), tls_client_ca=authority.file) as server:
        with pytest.raises((urllib.error.URLError, ConnectionError, ssl.SSLError)):
            scrape(server, None, context)
        context.load_cert_chain(*authority.pair("client", "client.example"))
        assert scrape(server, None, context) == 200


@pytest.mark.parametrize("version", ["x", "1.x.0", "%ff"])
def test_a_scrape_for_a_version_that_is_no_number_is_refused(server: Server, version: str) -> None:
    accept = {"Accept": f"application/openmetrics-text; version={version}"}
    url = f"http://127.0.0.1:{server.metrics_port}/metrics"
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(urllib.request.Request(url, headers=accept), timeout=60)
    assert caught.value.code == 400
    caught.value.close()


def test_a_closed_server_does_not_listen(capfd: pytest.CaptureFixture[str]) -> None:
    server = MetricsServer("localhost", 0, CollectorRegistry(), None, None)
    server.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("localhost", server.server_port), 5)
    assert capfd.readouterr().err == ""
