"""What the soak tests share: a tiny model, versions of it that answer differently, and a service to watch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import glowserve
from glowserve.images import UInt8Array
from tests.service.bundles import make_other
from tests.soak.callers import Known

_PAGE = os.sysconf("SC_PAGE_SIZE")


def pytest_itemcollected(item: pytest.Item) -> None:
    """These take longer than other tests may."""
    item.add_marker(pytest.mark.timeout(3600))


@dataclass(frozen=True)
class Sight:
    """What was seen of a service at one moment."""

    calls: float
    """That had ended."""
    rss: int
    """Bytes."""
    threads: int
    files: int
    """Open ones, sockets among them."""


class Service:
    """A `glowserve serve` that runs.

    Args:
        process: itself.
        target: HOST:PORT of gRPC.
        metrics_url: of the metrics.
        log: the file that its log goes to, a JSON object a line.
    """

    def __init__(self, process: subprocess.Popen[str], target: str, metrics_url: str, log: Path) -> None:
        self.process, self.target, self.log = process, target, log
        self._metrics_url = metrics_url
        self._proc = Path(f"/proc/{process.pid}")

    def metrics(self) -> dict[str, float]:
        """All series, by name and labels as they stand on the page."""
        with urllib.request.urlopen(self._metrics_url, timeout=60) as response:
            lines = response.read().decode().splitlines()
        return {
            key: float(value) for key, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")
        }

    def total(self, name: str) -> float:
        """A metric's sum over its labels."""
        return total(self.metrics(), name)

    def seen(self) -> Sight:
        """What is seen of it now."""
        return Sight(
            self.total("glowserve_requests_total"),
            int((self._proc / "statm").read_text().split()[1]) * _PAGE,
            len(list((self._proc / "task").iterdir())),
            len(list((self._proc / "fd").iterdir())),
        )

    @contextmanager
    def watched(self, seconds: float = 0.5) -> Iterator[list[Sight]]:
        """What is seen of it at every interval, for as long as the block runs."""
        sights, ended = [self.seen()], threading.Event()

        def watch() -> None:
            while not ended.wait(seconds):
                sights.append(self.seen())

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            yield sights
        finally:
            ended.set()
            thread.join()

    def log_lines(self) -> list[dict[str, Any]]:
        """Its log."""
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def calls_in_log(self) -> list[dict[str, Any]]:
        """Those of its log's lines that are about a call that has ended."""
        return [line for line in self.log_lines() if "code" in line]


Serve = Callable[..., Any]


@pytest.fixture
def serve(repository: Path, tmp_path: Path) -> Serve:
    """Runs `glowserve serve` as a process of its own, its log in a file: `with serve("--port", "8001") as service`.

    Its queues have room for 64 callers with 100 images each, so that nobody is refused.
    """

    @contextmanager
    def start(*flags: str, models: Path = repository, **options: Any) -> Iterator[Service]:
        command = [sys.executable, "-m", "glowserve", "serve", "--repository", str(models), "--port", "0"]
        command += ["--metrics-port", "0", "--device", "cpu", "--log-format", "json"]
        command += ["--max-queue-size", "8192", *flags]
        log = tmp_path / f"service-{len(list(tmp_path.glob('service-*')))}.log"
        with ExitStack() as stack:
            errors = stack.enter_context(log.open("w"))
            process = stack.enter_context(
                subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, **options)
            )
            stack.callback(process.kill)
            assert process.stdout is not None
            line = process.stdout.readline()  # "glowserve: serving gRPC on HOST:PORT, metrics on URL"
            assert line.startswith("glowserve: serving"), log.read_text()
            _, target, url = line.strip().split(" on ")
            yield Service(process, target.split(",")[0], url, log)

    return start


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model so small that a call is hardly more than the way there and back."""
    from glowserve_training.hardware import Hardware
    from glowserve_training.presets import run_config
    from glowserve_training.run import train

    config = run_config("digits", steps_per_level=2, width=8, steps=100, batch_size=32)
    return train(config, tmp_path_factory.mktemp("run"), hardware=Hardware(device="cpu"))


@pytest.fixture(scope="session")
def known(embedded: Any, digits: UInt8Array) -> Known:
    """What that model answers."""
    return Known.of(embedded, digits[:100])


MakeVersion = Callable[[int], Path]


@pytest.fixture(scope="session")
def make_version(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> MakeVersion:
    """Makes a sound bundle MODEL/N that gives other scores and samples than any other N: `make_version(2)`."""
    folder = tmp_path_factory.mktemp("versions") / "digits"

    def make(number: int) -> Path:
        target = folder / str(number)
        if target.exists():
            return target
        make_other(repository / "digits" / "1", target, log_det=1 + 0.05 * number, bins=1 - 0.02 * number)
        return target

    return make


def known_of(version: Path, images: UInt8Array) -> Known:
    """What a bundle answers."""
    return Known.of(glowserve.open(version), images)


def total(metrics: Mapping[str, float], name: str, **labels: str) -> float:
    """The sum of those of a metric's series that have these labels."""
    wanted = [f'{label}="{value}"' for label, value in labels.items()]
    return sum(
        value
        for key, value in metrics.items()
        if key.partition("{")[0] == name and all(label in key for label in wanted)
    )


def wait_for(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    """Until it holds.

    Raises:
        AssertionError: it does not by then.
    """
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "what was waited for did not come"
        time.sleep(0.02)


def table(title: str, rows: Sequence[tuple[str, object]]) -> None:
    """Prints figures, a name and a value a line."""
    print(f"\n\n{title}")
    for name, value in rows:
        print(f"  {name:<52} {value}")
