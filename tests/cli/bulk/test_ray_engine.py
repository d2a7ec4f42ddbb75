"""The way of a folder through a cluster: `glowserve score FOLDER --out FILE --engine ray`, on this machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from glowserve.cli import main
from glowserve.images import UInt8Array
from tests.cli.bulk.cluster import workers
from tests.cli.bulk.folders import rows, save, spoil

pytest.importorskip("ray", reason="needs the extra `ray`")

SECONDS = 240.0


def test_a_cluster_writes_the_same_rows_although_a_worker_is_killed(
    tmp_path: Path, target: list[str], digits: UInt8Array
) -> None:
    for i in range(12):
        save(digits, tmp_path / "pictures" / str(i))
    errors = spoil(tmp_path / "pictures")
    expected, out = tmp_path / "local.parquet", tmp_path / "ray.parquet"
    assert main(["score", str(tmp_path / "pictures"), "--out", str(expected), *target]) == 1
    others = workers()
    command = ["score", "pictures", "--out", str(out), "--engine", "ray", *target]
    environment = os.environ | {"RAY_USAGE_STATS_ENABLED": ""}
    with subprocess.Popen(
        [sys.executable, "-m", "glowserve", *command], cwd=tmp_path, env=environment, stderr=subprocess.PIPE
    ) as process:
        part, end = tmp_path / "ray.parquet.part", time.monotonic() + SECONDS
        while not (part.exists() and part.read_bytes().count(b"\n") > 300):
            assert time.monotonic() < end
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        killed = workers() - others
        for worker in killed:
            os.kill(worker, signal.SIGKILL)
        _, said = process.communicate(timeout=SECONDS)
    assert process.returncode == 1, said
    assert killed

    found = {str(tmp_path / path): row for path, row in rows(out).items()}
    assert len(errors) == sum(row["error"] is not None for row in found.values())
    assert found == rows(expected)


@pytest.mark.parametrize(("given", "seen"), [("", "0"), (None, "0"), ("0", "0"), ("1", "1")])
def test_ray_reports_only_if_the_user_has_turned_that_on(given: str | None, seen: str) -> None:
    kept = {name: text for name, text in os.environ.items() if name != "RAY_USAGE_STATS_ENABLED"}
    chosen = {} if given is None else {"RAY_USAGE_STATS_ENABLED": given}
    program = "import os; import glowserve.cli.bulk.ray_engine; print(os.environ['RAY_USAGE_STATS_ENABLED'])"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=kept | chosen,
        capture_output=True,
        text=True,
        timeout=240,
        check=True,
    )
    assert done.stdout.strip() == seen
