"""The way of 22,000 photographs through `glowserve score FOLDER --out FILE`: embedded, with a service, on a cluster."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from glowserve.runtime.repository import Bundle
from tests.cli.bulk.cluster import workers
from tests.cli.bulk.folders import rows
from tests.soak.conftest import Serve
from tests.soak.report import print_table

IMAGES = 22_000
SCORES = "anomaly_p_value,anomalous,typicality_p_value,log_prior,log_det"
SECONDS = 1800.0


@pytest.fixture(scope="module")
def embedded_file(photographs: Bundle, shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a run that opens the bundle itself."""
    out = tmp_path_factory.mktemp("embedded") / "scores.parquet"
    run("embedded", shared_data, out, "--model", str(photographs.path))
    found = rows(out)
    assert len(found) == IMAGES
    assert all(row["error"] is None for row in found.values())
    return out


def test_a_service_gives_the_same_rows(
    embedded_file: Path, photographs: Bundle, shared_data: Path, serve: Serve, tmp_path: Path
) -> None:
    out = tmp_path / "scores.parquet"
    with serve(models=photographs.path.parents[1]) as service:
        run("a service", shared_data, out, "--server", service.target)
    assert rows(out) == rows(embedded_file)


def test_a_cluster_gives_the_same_rows_although_its_workers_are_killed(
    embedded_file: Path, photographs: Bundle, shared_data: Path, tmp_path: Path
) -> None:
    pytest.importorskip("ray", reason="needs the extra `ray`")
    out = tmp_path / "scores.parquet"
    run("a cluster", shared_data, out, "--model", str(photographs.path), "--engine", "ray", kill=True)
    assert rows(out) == rows(embedded_file)


def run(name: str, shared_data: Path, out: Path, *flags: str, kill: bool = False) -> None:
    """Runs `glowserve score`, and prints its speed; `kill` ends the cluster's workers after a quarter of the rows."""
    others, began = workers(), time.monotonic()
    command = [sys.executable, "-m", "glowserve", "score", str(shared_data / "cifar10-jpeg")]
    command += ["--out", str(out), "--scores", SCORES, *flags]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        part, end = out.with_name(f"{out.name}.part"), time.monotonic() + SECONDS
        while kill and process.poll() is None and not (part.exists() and count(part) > IMAGES / 4):
            assert time.monotonic() < end
            time.sleep(0.1)
        killed = workers() - others if kill else set()
        for worker in killed:
            os.kill(worker, signal.SIGKILL)
        _, said = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, said
    assert bool(killed) == kill
    speed = f"{IMAGES / (time.monotonic() - began):.0f}"
    print_table(f"{IMAGES:,} images to a .parquet file, {SCORES}", [(f"images/s, {name}", speed)])


def count(part: Path) -> int:
    """The lines of a journal."""
    with part.open("rb") as file:
        return sum(1 for _ in file)
