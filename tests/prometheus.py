"""A real Prometheus that scrapes one service, with the rules of deploy/.

Tests that use it are skipped without `prometheus` and `promtool` on the PATH: `apt-get install prometheus`.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

RULES = Path(__file__).parents[1] / "deploy" / "prometheus" / "rules.yml"


def program(name: str) -> str:
    """Where a program is; the test is skipped where it is not."""
    if (path := shutil.which(name)) is None:
        pytest.skip(f"{name} is not installed")
    return path


@contextmanager
def prometheus(target: int, folder: Path) -> Iterator[str]:
    """Runs a Prometheus that scrapes a port every half second; its URL."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    config = {
        "global": {"scrape_interval": "500ms", "scrape_timeout": "500ms", "evaluation_interval": "500ms"},
        "rule_files": [str(RULES)],
        "scrape_configs": [
            {"job_name": "glowserve", "static_configs": [{"targets": [f"127.0.0.1:{target}"]}]}
        ],
    }
    (folder / "prometheus.json").write_text(json.dumps(config))  # JSON is YAML
    flags = (f"--config.file={folder}/prometheus.json", f"--storage.tsdb.path={folder}/data")
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [program("prometheus"), *flags, f"--web.listen-address={address}"], stderr=log, stdout=log
        )
    try:
        yield f"http://{address}"
    finally:
        process.terminate()
        process.wait(60)


def ask(url: str) -> Any:
    """What Prometheus's API answers; nothing while it starts."""
    try:
        with urllib.request.urlopen(url, timeout=60) as response:
            return json.load(response)["data"]
    except OSError:
        return {"alerts": [], "result": []}


def changed_models(url: str) -> set[str]:
    """The models for which the alert of changed traffic fires."""
    return {
        alert["labels"]["model"]
        for alert in ask(f"{url}/api/v1/alerts")["alerts"]
        if alert["labels"]["alertname"] == "GlowserveTrafficChanged" and alert["state"] == "firing"
    }


def scrapes(url: str) -> int:
    """How many scrapes Prometheus has stored."""
    result = ask(f"{url}/api/v1/query?query=count_over_time(glowserve_ready[10m])")["result"]
    return int(result[0]["value"][1]) if result else 0
