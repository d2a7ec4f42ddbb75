"""Dashboards and alert rules, and what a real Prometheus answers to their expressions."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import urllib.parse
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from glowserve_service.observability.metrics import Metrics
from glowserve_service.security.certificates import Certificates
from glowserve_service.server import Server

import glowserve
from glowserve.images import UInt8Array
from tests.deploy.dashboards import (
    DASHBOARDS,
    DEPLOY,
    ROOT,
    alerts,
    dashboard_expressions,
    panels,
    rule_expressions,
)
from tests.prometheus import ask, program, prometheus, scrapes
from tests.servers import RunServer
from tests.service.credentials import Authority
from tests.service.wire import wait_for

pytest.importorskip("grafana_foundation_sdk", reason="the dashboards are made with grafana-foundation-sdk")


def test_the_dashboards_are_fresh() -> None:
    command = [sys.executable, str(DEPLOY / "grafana" / "make_dashboards.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_dashboards_show_every_metric_of_the_service() -> None:
    """Those that no dashboard shows are those of alerts, and details of the log."""
    shown = set(
        re.findall(
            r"glowserve_\w+?(?=_bucket|_sum|_count|\b)",
            json.dumps(list(dashboard_expressions("1m").values())),
        )
    )
    known = {metric.name for metric in Metrics().descriptions}
    assert shown <= known
    in_rules = set(re.findall(r"glowserve_\w+", json.dumps(list(rule_expressions().values()))))
    assert known - shown - in_rules == {
        "glowserve_failed_decodes_total",
        "glowserve_hanging_loads",
        "glowserve_inexact_encodings_total",
        "glowserve_redrawn_samples_total",
    }


def test_every_panel_says_what_it_shows() -> None:
    assert len(DASHBOARDS) == 2
    for panel in panels():
        assert panel["title"]
        assert panel["description"].endswith(".")
        assert panel["fieldConfig"]["defaults"]["unit"]


def test_every_alert_has_a_paragraph_in_the_runbook_and_a_test_that_it_fires() -> None:
    """Each paragraph says what the alert means, what to look at, and what to do."""
    runbook = (ROOT / "docs" / "runbook.md").read_text()
    tests = (DEPLOY / "prometheus" / "rules_test.yml").read_text()
    paragraphs = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", runbook, re.DOTALL | re.MULTILINE))
    names = [rule["alert"] for rule in alerts()]
    assert sorted(paragraphs) == sorted(names)
    for name in names:
        for part in ("**Means.**", "**Look at.**", "**Do.**"):
            assert part in paragraphs[name], f"{name} lacks {part}"
        fires = re.findall(rf"alertname: {name}\n +exp_alerts:\n +- exp_labels", tests)
        assert fires, f"no test has {name} fire"


@pytest.fixture(scope="module")
def busy(
    run_server: RunServer, digits: UInt8Array, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """A server with a certificate's expiry, and with the statuses that the alerts ask for."""
    authority = Authority(tmp_path_factory.mktemp("certificates") / "authority")
    with run_server(max_images_per_call=200, canary_seconds=1) as server:
        server.metrics.show_certificates(Certificates(*authority.pair("server"), None))
        server.metrics.requests.labels("Score", "digits", "INTERNAL").inc(0)
        server.metrics.requests.labels("Score", "digits", "RESOURCE_EXHAUSTED").inc(0)
        yield server


def mixed_traffic(server: Server, digits: UInt8Array) -> None:
    """Calls of every kind, some of which are refused."""
    with glowserve.Client(f"127.0.0.1:{server.port}") as client:
        client.score(digits[:64], scores=["anomaly_p_value"])
        client.sample(8)
        client.decode(client.encode(digits[0]).latents)
        client.interpolate(digits[0], digits[1], steps=3)
        client.explain(digits[0])
        with suppress(glowserve.RequestError):
            client.score(np.zeros((1, 9, 9, 1), np.uint8))
        with suppress(glowserve.RequestError):
            client.score(digits[:1], model="nobody")


def test_prometheus_answers_every_expression_of_dashboards_and_rules(
    busy: Server, digits: UInt8Array, tmp_path: Path
) -> None:
    program("prometheus")
    expressions = dashboard_expressions("20s") | rule_expressions()
    assert len(expressions) > 40
    with prometheus(busy.metrics_port, tmp_path) as url:
        wait_for(lambda: scrapes(url) >= 1)
        mixed_traffic(busy, digits)
        seen = scrapes(url)
        wait_for(lambda: scrapes(url) >= seen + 3)
        mixed_traffic(busy, digits)
        seen = scrapes(url)
        wait_for(lambda: scrapes(url) >= seen + 2)

        def answer(expression: str) -> list[object]:
            found: list[object] = ask(f"{url}/api/v1/query?{urllib.parse.urlencode({'query': expression})}")[
                "result"
            ]
            return found

        empty = {name: expression for name, expression in expressions.items() if not answer(expression)}
        assert empty == {}
        assert answer('absent(glowserve_ready{instance="nobody"})'), "an expression without series is empty"
        assert answer('glowserve_ready{instance="nobody"}') == []
