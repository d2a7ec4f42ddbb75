"""A `glowserve serve` process, with its metrics, its log, its memory, threads and open files."""

from __future__ import annotations

import json
import os
import subprocess
import threading
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.servers import FRONTENDS, start_server
from tests.service.frontends.front_ends import children

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Snapshot:
    """The resources of a service at one moment, those of its front-ends included."""

    ended_calls: float
    """Since the service started."""
    rss: int
    """Resident memory, in bytes."""
    threads: int
    files: int
    """Open files, sockets included."""


class Service:
    """A running service.

    Args:
        process: `glowserve serve`.
        target: HOST:PORT of gRPC.
        metrics_url: URL of the metrics page.
        log: the file of its standard error.
    """

    def __init__(self, process: subprocess.Popen[str], target: str, metrics_url: str, log: Path) -> None:
        self.process, self.target, self.metrics_url, self.log = process, target, metrics_url, log

    def metrics(self) -> dict[str, float]:
        """All series, by name and labels as on the metrics page."""
        with urllib.request.urlopen(self.metrics_url, timeout=60) as response:
            lines = response.read().decode().splitlines()
        series = (line.rpartition(" ") for line in lines if not line.startswith("#"))
        return {key: float(value) for key, _, value in series}

    def total(self, name: str, **labels: str) -> float:
        """The sum of a metric's series that have these labels."""
        return total(self.metrics(), name, **labels)

    def snapshot(self) -> Snapshot:
        """The service's resources now."""
        folders = [Path(f"/proc/{each}") for each in (self.process.pid, *self.frontends())]
        return Snapshot(
            self.total("glowserve_requests_total"),
            sum(int((folder / "statm").read_text().split()[1]) for folder in folders) * _PAGE_BYTES,
            sum(len(list((folder / "task").iterdir())) for folder in folders),
            sum(len(list((folder / "fd").iterdir())) for folder in folders),
        )

    def frontends(self) -> list[int]:
        """The processes that accept calls for it; none where it accepts them itself."""
        return children(self.process.pid) if FRONTENDS > 1 else []

    @contextmanager
    def monitored(self, interval_seconds: float = 0.5) -> Iterator[list[Snapshot]]:
        """Snapshots, taken at every interval until the block ends."""
        snapshots, ended = [self.snapshot()], threading.Event()

        def monitor() -> None:
            while not ended.wait(interval_seconds):
                snapshots.append(self.snapshot())

        thread = threading.Thread(target=monitor)
        thread.start()
        try:
            yield snapshots
        finally:
            ended.set()
            thread.join()

    def log_lines(self) -> list[dict[str, Any]]:
        """The lines of its JSON log."""
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def call_log(self) -> list[dict[str, Any]]:
        """The log lines of ended calls."""
        return [line for line in self.log_lines() if "code" in line]


@contextmanager
def running_service(repository: Path, log: Path, *flags: str, **options: Any) -> Iterator[Service]:
    """Runs a service until the block ends, and kills it then if it still runs.

    Args:
        repository: the models that it serves.
        log: the file for its standard error.
        flags: of `glowserve serve`.
        options: of `subprocess.Popen`.
    """
    with log.open("w") as errors, start_server(repository, *flags, stderr=errors, **options) as started:
        yield Service(started.process, started.target, started.metrics_url, log)


def total(metrics: Mapping[str, float], name: str, **labels: str) -> float:
    """The sum of a metric's series that have these labels.

    Args:
        metrics: as `Service.metrics` returns them.
        name: the metric's.
        labels: a series counts if it has all of them.
    """
    wanted = [f'{label}="{value}"' for label, value in labels.items()]
    return sum(
        value
        for key, value in metrics.items()
        if key.partition("{")[0] == name and all(label in key for label in wanted)
    )
