"""A served repository, for the tests of packaging."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

Serve = Callable[..., AbstractContextManager[str]]


@pytest.fixture(scope="session")
def serve() -> Serve:
    """`with serve(glowserve, repository) as target` runs `glowserve serve` and stops it with SIGTERM.

    `glowserve` is the command line up to its first argument; keyword arguments are those of `subprocess.Popen`.
    """

    @contextmanager
    def run(glowserve: Sequence[str], repository: Path, **options: Any) -> Iterator[str]:
        command = [*glowserve, "serve", "--repository", str(repository)]
        command += ["--port", "0", "--metrics-port", "0", "--device", "cpu"]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
        ) as process:
            try:
                assert process.stdout is not None
                line = process.stdout.readline()  # "glowserve: serving gRPC on HOST:PORT, metrics on URL"
                assert line.startswith("glowserve: serving gRPC on "), line or process.communicate()
                yield line.split(" on ")[1].split(",")[0]
                process.send_signal(signal.SIGTERM)
                _, errors = process.communicate(timeout=60)
            finally:
                process.kill()
        assert process.returncode == 0, errors

    return run
