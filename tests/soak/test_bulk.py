"""The way of 22,000 photographs through `glowserve score FOLDER --out FILE`: embedded, with a service, on a cluster."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
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


def test_the_rows_are_the_same_wherever_they_are_computed(
    photographs: Bundle, shared_data: Path, serve: Serve, tmp_path: Path
) -> None:
    """And although the cluster's workers are killed in the middle."""
    model = ["--model", str(photographs.path)]
    seconds: dict[str, float] = {}
    files = {name: tmp_path / f"{name}.parquet" for name in ("embedded", "service", "cluster")}

    def score(name: str, *flags: str, kill: bool = False) -> None:
        began = time.monotonic()
        run(shared_data / "cifar10-jpeg", files[name], flags, kill=kill)
        seconds[name] = time.monotonic() - began

    score("embedded", *model)
    with serve(models=photographs.path.parents[1]) as service:
        score("service", "--server", service.target)
    if has_ray := importlib.util.find_spec("ray") is not None:
        score("cluster", *model, "--engine", "ray", kill=True)
    print_table(
        f"{IMAGES:,} images to a .parquet file, {SCORES}",
        [(f"images/s, {name}", f"{IMAGES / spent:.0f}") for name, spent in seconds.items()],
    )
    expected = rows(files["embedded"])
    assert len(expected) == IMAGES
    assert all(row["error"] is None for row in expected.values())
    assert rows(files["service"]) == expected
    if has_ray:
        assert rows(files["cluster"]) == expected
    else:
        pytest.skip("the cluster needs the extra `ray`; the others have the same rows")


def run(images: Path, out: Path, flags: Sequence[str], *, kill: bool) -> None:
    """Runs `glowserve score`; if asked, kills the cluster's workers when a quarter of the rows is there."""
    others = workers()
    command = [
        sys.executable,
        "-m",
        "glowserve",
        "score",
        str(images),
        "--out",
        str(out),
        "--scores",
        SCORES,
        *flags,
    ]
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


def count(part: Path) -> int:
    """The lines of a journal."""
    with part.open("rb") as file:
        return sum(1 for _ in file)
