"""The metrics: the page that Prometheus scrapes, their table in the docs, and the alert rules."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
import urllib.request
from pathlib import Path

import grpc
import onnx
import pytest
from glowserve_service.observability.log_writer import LogWriter
from glowserve_service.observability.logs import TextFormatter
from glowserve_service.observability.metrics import Metrics
from glowserve_service.server import Server
from prometheus_client.parser import text_string_to_metric_families

from glowserve.runtime.repository import Bundle
from glowserve.v1 import glow_service_pb2 as pb
from tests.servers import RunServer
from tests.service.scraping import page, series, value
from tests.service.stubs import connect
from tests.service.wire import wait_for

ROOT = Path(__file__).parents[3]


def test_the_page_is_one_that_prometheus_reads(server: Server) -> None:
    url = f"http://127.0.0.1:{server.metrics_port}/metrics"
    with urllib.request.urlopen(url, timeout=60) as response:
        kind = response.headers["Content-Type"]
    assert kind.startswith("text/plain")
    assert "version=" in kind
    families = {family.name: family for family in text_string_to_metric_families(page(server))}
    ours = [name for name in families if name.startswith("glowserve_") and not name.endswith("_created")]
    assert len(ours) == len(Metrics().descriptions)
    assert all(families[name].documentation.endswith(".") for name in ours)
    assert {"process_resident_memory_bytes", "process_cpu_seconds"} <= families.keys()


def test_the_generated_parts_of_the_docs_are_fresh() -> None:
    command = [sys.executable, str(ROOT / "docs" / "generate.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_table_in_the_docs_is_the_registry() -> None:
    """What the table is made from is what is scraped."""
    metrics = Metrics()
    scraped = {
        (f"{family.name}_total" if family.type == "counter" else family.name, family.type)
        for family in metrics.registry.collect()
        if family.name.startswith("glowserve_")
    }
    assert {(metric.name, metric.kind) for metric in metrics.descriptions} == scraped
    text = (ROOT / "docs" / "operations.md").read_text()
    assert re.findall(r"^\| `(glowserve_\w+)`", text, re.MULTILINE) == [
        metric.name for metric in metrics.descriptions
    ]


def test_the_alert_rules_use_metrics_and_codes_that_exist() -> None:
    rules = (ROOT / "deploy" / "prometheus" / "rules.yml").read_text()
    used = {re.sub("_(bucket|count|sum)$", "", name) for name in re.findall(r"glowserve_\w+", rules)}
    assert len(used) == 14
    assert used <= {metric.name for metric in Metrics().descriptions}
    codes = {code.name for code in grpc.StatusCode}
    assert set(re.findall(r'code="(\w+)"', rules)) == {"RESOURCE_EXHAUSTED", "INTERNAL"} <= codes


def test_a_server_without_calls_shows_what_it_serves(run_server: RunServer) -> None:
    with run_server() as server:
        assert value(server, "requests_in_flight") == 0
        assert value(server, "ready") == 1
        assert value(server, "model_loads_total", model="digits", outcome="loaded") == 1
        assert value(server, "canary_checks_total", model="digits", outcome="ok") == 1
        for direction in ("forward", "reverse", "explain"):
            assert value(server, "queue_length", model="digits", direction=direction) == 0
            assert value(server, "batch_size_count", model="digits", direction=direction) == 0
        assert series(server, "requests_total") == []


def test_a_model_shows_where_and_how_it_runs(server: Server, bundle: Bundle) -> None:
    names = {"device": "cpu", "provider": "CPUExecutionProvider", "precision": "fp32"}
    assert value(server, "model_info", model="digits", version="1", **names) == 1
    with connect(server) as stubs:
        graphs = stubs.glow.GetModel(pb.GetModelRequest()).graphs
    assert [graph.graph for graph in graphs] == ["forward.onnx", "reverse.onnx"]
    for graph in graphs:
        assert graph.provider == "CPUExecutionProvider"
        # ONNX Runtime moves transpositions first, which may then be one more or one less.
        assert abs(graph.nodes - len(onnx.load_from_string(bundle.read(graph.graph)).graph.node)) <= 1
        labels = {"model": "digits", "version": "1", "graph": graph.graph, "provider": graph.provider}
        assert value(server, "graph_nodes", **labels) == graph.nodes


def test_two_services_of_one_process_do_not_share_their_numbers() -> None:
    one, other = Metrics(), Metrics()
    one.requests.labels("Score", "digits", "OK").inc()
    labels = {"method": "Score", "model": "digits", "code": "OK"}
    assert one.registry.get_sample_value("glowserve_requests_total", labels) == 1
    assert other.registry.get_sample_value("glowserve_requests_total", labels) is None


@pytest.mark.parametrize("lines", [0, 3])
def test_dropped_log_lines_are_those_of_the_process_log(lines: int) -> None:
    writer = LogWriter(None, TextFormatter())
    logging.getLogger().addHandler(writer)
    try:
        for _ in range(lines):
            logging.getLogger().warning("to nobody")
        wait_for(lambda: writer.dropped == lines)
        registry = Metrics().registry
        assert registry.get_sample_value("glowserve_dropped_log_lines_total") == lines
    finally:
        logging.getLogger().removeHandler(writer)
        writer.close()
