"""Metrics as Prometheus scrapes them, over HTTP."""

from __future__ import annotations

import urllib.request

from glowserve_service.server import Server
from prometheus_client.parser import text_string_to_metric_families


def page(server: Server | str) -> str:
    """The text that a server in this process, or the server with that URL, answers."""
    url = server if isinstance(server, str) else f"http://127.0.0.1:{server.metrics_port}/metrics"
    with urllib.request.urlopen(url, timeout=60) as response:
        text: str = response.read().decode()
    return text


def series(server: Server | str, name: str) -> list[tuple[dict[str, str], float]]:
    """Every series of the metric glowserve_NAME: its labels and its value."""
    return [
        (sample.labels, sample.value)
        for family in text_string_to_metric_families(page(server))
        for sample in family.samples
        if sample.name == f"glowserve_{name}"
    ]


def value(server: Server | str, name: str, **labels: str) -> float | None:
    """The value of one series; None if there is none with these labels."""
    return next((found for each, found in series(server, name) if each == labels), None)
