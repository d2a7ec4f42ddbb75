"""Runs the service for tests: in a thread of this process, or as a process of its own.

Tests use the fixtures `run_server` and `start_server`, which pass the repository of digits.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from glowserve_service.config import ServiceConfig
from glowserve_service.scheduling.decoders import Decoders
from glowserve_service.server import Server

from glowserve.images import UInt8Array
from glowserve.pictures import Pictures

GLOWSERVE = ("-m", "glowserve")
SECONDS = 120.0
"""How long a start or a stop may take on a slow machine."""
FRONTENDS = int(os.environ.get("TEST_FRONTENDS", "1"))
"""How many front-ends servers have, unless a test says otherwise. `make test-frontends` sets it."""


class DecodersOnDemand(Decoders):
    """Starts as many processes as it should, each with a call: that takes most of the time of a server's start.

    `glowserve serve` starts them before the first call; so do servers of more than one front-end.
    """

    def __init__(self, processes: int, *limits: Any) -> None:
        super().__init__(0, *limits)
        self._not_started = processes

    async def decode(self, pictures: Pictures) -> UInt8Array:
        """See `Decoders.decode`."""
        if self._not_started:
            self._not_started -= 1
            self._idle.put_nowait(self._new())
        return await super().decode(pictures)


class RunServer(Protocol):
    """The fixture `run_server`: `with run_server(max_queue_size=8) as server`."""

    def __call__(self, **settings: Any) -> AbstractContextManager[Server]:
        """See `run_server`."""


class StartServer(Protocol):
    """The fixture `start_server`: `with start_server("--max-queue-size", "8") as (process, target, metrics_url)`."""

    def __call__(
        self, *flags: str, wait: bool = True, program: Sequence[str] = GLOWSERVE, **options: Any
    ) -> AbstractContextManager[ServerProcess]:
        """See `start_server`."""


class ServerProcess(NamedTuple):
    """A `glowserve serve` that runs."""

    process: subprocess.Popen[str]
    target: str
    """HOST:PORT of gRPC."""
    metrics_url: str

    def metric(self, name: str) -> float:
        """The sum of a metric's series."""
        with urllib.request.urlopen(self.metrics_url, timeout=SECONDS) as page:
            lines = page.read().decode().splitlines()
        names = (f"{name} ", f"{name}{{")
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(names))

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """Sends a signal, and returns the exit code and the log."""
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> tuple[int, str]:
        """Waits for the end, and returns the exit code and the log."""
        _, log = self.process.communicate(timeout=SECONDS)
        return self.process.returncode, log

    def stop(self) -> str:
        """Sends SIGTERM, checks that the process ends without a fault, and returns the log."""
        code, log = self.end()
        assert code == 0, log
        assert "Traceback" not in log
        return log


@contextmanager
def run_server(repository: Path, /, **settings: Any) -> Iterator[Server]:
    """A server in a thread of this process, which has an event loop of its own.

    Args:
        repository: what is served, unless `settings` names another.
        settings: fields of ServiceConfig; the ports are free ones, and the device is the CPU.

    Raises:
        GlowserveError: the server cannot start.
        ValueError: certificates, tokens or settings cannot be used.
    """
    defaults: dict[str, Any] = {
        "repository": repository,
        "port": 0,
        "metrics_port": 0,
        "device": "cpu",
        "frontends": FRONTENDS,
    }
    config = ServiceConfig(**defaults | settings)
    started: Future[tuple[Server, Callable[[], object]]] = Future()

    async def serve() -> None:
        ended, loop = asyncio.Event(), asyncio.get_running_loop()
        try:
            server = Server(config)
            await server.start()
        except BaseException as error:
            started.set_exception(error)
            return
        started.set_result((server, lambda: loop.call_soon_threadsafe(ended.set)))
        await ended.wait()
        await server.stop()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    try:
        server, end = started.result(SECONDS)
        try:
            yield server
        finally:
            end()
    finally:
        thread.join(SECONDS)
        assert not thread.is_alive(), "the server did not stop"


@contextmanager
def start_server(
    repository: Path, *flags: str, wait: bool = True, program: Sequence[str] = GLOWSERVE, **options: Any
) -> Iterator[ServerProcess]:
    """`glowserve serve` as a process of its own, for tests that send it signals; killed at the end at the latest.

    Args:
        repository: what is served, unless a flag names another.
        flags: of `glowserve serve`.
        wait: until the server is ready; else the process has just been started, and may not listen yet.
        program: what Python runs, a script and its arguments, if it is not `glowserve` itself.
        options: of subprocess.Popen, such as `env`, or a file for the log as `stderr`.
    """
    port = 0 if wait else free_port()
    command = _command(
        program, "--repository", str(repository), "--port", str(port), "--metrics-port", "0", *flags
    )
    options = {"stderr": subprocess.PIPE} | options
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **options) as process:
        try:
            if not wait:
                yield ServerProcess(process, f"127.0.0.1:{port}", "")
                return
            assert process.stdout is not None
            line = process.stdout.readline()  # "glowserve: serving gRPC on HOST:PORT, metrics on URL"
            assert line.startswith("glowserve: serving"), line or process.communicate()
            _, target, url = line.strip().split(" on ")
            yield ServerProcess(process, target.split(",")[0], url)
        finally:
            process.kill()


def failed_start(*flags: str, **variables: str) -> list[str]:
    """The lines on standard error of a `glowserve serve` that cannot start; the last says why.

    Args:
        flags: of `glowserve serve`.
        variables: environment variables; no other GLOWSERVE_ variable is set.
    """
    kept = {name: text for name, text in os.environ.items() if not name.startswith("GLOWSERVE_")}
    ended = subprocess.run(
        _command(GLOWSERVE, *flags),
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
        env=kept | variables,
    )
    assert (ended.returncode, ended.stdout) == (2, ""), ended
    assert "Traceback" not in ended.stderr
    lines = ended.stderr.splitlines()
    assert lines[-1].startswith("glowserve: ")
    return [*lines[:-1], lines[-1].removeprefix("glowserve: ")]


def free_port() -> int:
    """A port of the loopback interface that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


def listens(target: str) -> bool:
    """Whether somebody listens on HOST:PORT."""
    host, _, port = target.rpartition(":")
    with socket.socket() as connection:
        return connection.connect_ex((host, int(port))) == 0


def _command(program: Sequence[str], *flags: str) -> list[str]:
    return [sys.executable, *program, "serve", "--device", "cpu", "--frontends", str(FRONTENDS), *flags]
