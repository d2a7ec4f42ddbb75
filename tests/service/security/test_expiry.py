"""Certificates that are expired, near their end or not yet valid: the log and a metric say so, and calls go on."""

from __future__ import annotations

import logging
import shutil
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from glowserve_service import server as server_module
from glowserve_service.security.expiry import validity

from tests.servers import RunServer
from tests.service.credentials import Authority
from tests.service.log_records import records_of
from tests.service.metrics import has_series, value
from tests.service.wire import wait_for

LOGGER = "glowserve_service.security.expiry"
METRIC = "certificate_expiry_timestamp_seconds"
NOW = datetime.now(UTC).replace(microsecond=0)
DAY = timedelta(days=1)


@pytest.mark.parametrize(
    ("begins", "expires", "level", "sentence"),
    [
        (-30 * DAY, -2 * DAY, "ERROR", "expired on "),
        (-30 * DAY, 13 * DAY, "WARNING", "expires on "),
        (2 * DAY, 90 * DAY, "ERROR", "is not valid before "),
        (-30 * DAY, 15 * DAY, "", ""),
    ],
    ids=["expired", "near", "not yet", "valid"],
)
def test_the_log_and_a_metric_tell_of_the_certificate(
    run_server: RunServer,
    authority: Authority,
    caplog: pytest.LogCaptureFixture,
    begins: timedelta,
    expires: timedelta,
    level: str,
    sentence: str,
) -> None:
    cert, key = authority.pair("server", begins=NOW + begins, expires=NOW + expires)
    with caplog.at_level(logging.INFO, LOGGER), run_server(tls_cert=cert, tls_key=key) as server:
        assert value(server, METRIC, file="tls_cert") == (NOW + expires).timestamp()
        assert not has_series(server, METRIC, file="tls_client_ca")
    lines = [(each.levelname, each.getMessage()) for each in records_of(caplog, LOGGER)]
    if not level:
        assert lines == []
        return
    [(found, line)] = lines
    assert found == level
    date = NOW + (begins if begins > timedelta() else expires)
    assert line.startswith(f"tls_cert {cert} {sentence}{date:%Y-%m-%d %H:%M} UTC")


def test_a_renewed_certificate_is_seen_by_the_metric_and_a_worse_one_by_the_log(
    run_server: RunServer, authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    with run_server(**authority.settings()) as server:
        first = value(server, METRIC, file="tls_cert")
        with caplog.at_level(logging.INFO, LOGGER):
            authority.pair("server", expires=NOW + 3 * DAY)
            assert value(server, METRIC, file="tls_cert") == (NOW + 3 * DAY).timestamp() < first
        (record,) = records_of(caplog, LOGGER)
        assert "expires on" in record.getMessage()


def test_the_log_repeats_it_although_nobody_connects(
    run_server: RunServer,
    authority: Authority,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server_module, "_CERTIFICATE_SECONDS", 0.05)
    cert, key = authority.pair("server", expires=NOW + DAY)
    with caplog.at_level(logging.INFO, LOGGER), run_server(tls_cert=cert, tls_key=key):
        wait_for(lambda: len(records_of(caplog, LOGGER)) > 3)


def test_the_authority_of_clients_expires_too(
    run_server: RunServer, authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    """Of a file with several authorities the last that expires counts."""
    old, _ = authority.pair("old", expires=NOW - DAY)
    clients = old.with_name("clients.pem")
    shutil.copy(old, clients)
    settings = authority.settings()
    with caplog.at_level(logging.INFO, LOGGER), run_server(**settings, tls_client_ca=clients) as server:
        assert value(server, METRIC, file="tls_client_ca") == (NOW - DAY).timestamp()
        (record,) = records_of(caplog, LOGGER)
        assert record.getMessage().startswith(f"tls_client_ca {clients} expired on ")
        clients.write_bytes(old.read_bytes() + authority.file.read_bytes())
        assert value(server, METRIC, file="tls_client_ca") > time.time()


def test_the_first_certificate_of_a_chain_that_expires_counts(authority: Authority, tmp_path: Path) -> None:
    near, _ = authority.pair("near", expires=NOW + DAY)
    far, _ = authority.pair("far", expires=NOW + 9 * DAY)
    [found] = validity("tls_cert", tmp_path, far.read_bytes() + near.read_bytes())
    assert found.end == (NOW + DAY).timestamp()


def test_dates_that_cannot_be_read_are_left_out(tmp_path: Path) -> None:
    assert validity("tls_cert", tmp_path, b"no certificate") == []


def test_without_certificates_there_is_no_series(run_server: RunServer) -> None:
    with run_server() as server:
        assert not has_series(server, METRIC, file="tls_cert")
