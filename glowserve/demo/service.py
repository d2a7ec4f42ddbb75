"""Runs the demo's service as a child process, which never outlives the demo."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_STOP_SECONDS = 20


class ServiceDiedError(Exception):
    """The service ended before it was ready; its log says why."""


@contextmanager
def running_service(repository: Path, log: Path) -> Iterator[str]:
    """Runs `glowserve serve` on free loopback ports; yields HOST:PORT, and stops it with SIGTERM at the end.

    Raises:
        ServiceDiedError: it ended before it was ready.
    """
    command = [sys.executable, "-P", "-m", "glowserve", "serve", "--repository", str(repository)]
    command += ["--port", "0", "--metrics-port", "0"]
    with log.open("w") as file:
        # In our process group, so that Ctrl-C on a terminal ends the service too.
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=file, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise ServiceDiedError(f"the service ended before it was ready; {log} says why")
        yield line.split(" on ")[1].split(",")[0]
    finally:
        process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout:
            process.stdout.close()
