"""A service whose standard error or output nobody reads: processes that start, answer, load and stop all the same."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme
from glowserve_service.healthcheck import is_serving

from glowserve.images import UInt8Array
from glowserve.v1 import glow_service_pb2 as pb
from tests.servers import free_port, listens
from tests.service.pipes import full_pipe, lines_until
from tests.service.scraping import page, value
from tests.service.stubs import connect
from tests.service.wire import copied, raw, wait_for

# More than the log's queue and a batch of its thread hold.
MANY_CALLS = 5000
# Calls wait in the queue for as long as a test needs them to.
STUCK = ("--max-queue-delay-ms", "600000", "--drain-seconds", "600")


@dataclass
class Service:
    """A running `glowserve serve`."""

    process: subprocess.Popen[bytes]
    target: str
    """HOST:PORT of gRPC."""
    metrics_url: str

    def dropped(self) -> float:
        """Log lines that were dropped."""
        return value(self.metrics_url, "dropped_log_lines_total") or 0.0

    def call(self, times: int) -> None:
        """Calls GetModel, 500 calls at once."""
        with connect(self.target) as stubs:
            get = stubs.glow.GetModel
            for first in range(0, times, 500):
                calls = [get.future(pb.GetModelRequest(), timeout=60) for _ in range(first, first + 500)]
                assert all(len(call.result().graphs) == 2 for call in calls)

    def stop(self) -> int:
        """The exit code after a SIGTERM."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(20)


@contextmanager
def started(repository: Path, *flags: str, closed: str = "", **streams: Any) -> Iterator[Service]:
    """Starts a service.

    Args:
        repository: what it serves.
        flags: of `glowserve serve`.
        closed: a redirection of the shell that closes a stream: 1>&- or 2>&-.
        streams: arguments of Popen. Standard output and error are /dev/null by default.
    """
    port, metrics_port = free_port(), free_port()
    command = [sys.executable, "-m", "glowserve", "serve", "--repository", str(repository)]
    command += ["--port", str(port), "--metrics-port", str(metrics_port), "--device", "cpu", *flags]
    shell = ["sh", "-c", f'exec "$@" {closed}', "sh"]
    streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL} | streams
    with subprocess.Popen(shell + command, **streams) as process:
        try:
            yield Service(process, f"127.0.0.1:{port}", f"http://127.0.0.1:{metrics_port}/metrics")
        finally:
            process.kill()


@contextmanager
def serving(repository: Path, *flags: str, **streams: Any) -> Iterator[Service]:
    """A service that is SERVING; the arguments are those of `started`."""
    with started(repository, *flags, **streams) as service:
        wait_for(lambda: is_serving(service.target) or service.process.poll() is not None)
        assert service.process.returncode is None, "the service ended"
        yield service


@contextmanager
def unread(stream: str, kind: str) -> Iterator[dict[str, Any]]:
    """Arguments of `started` for a stream that is a full pipe, has no reader any more, or is closed."""
    if kind == "closed":
        yield {"closed": f"{['stdout', 'stderr'].index(stream) + 1}>&-"}
        return
    with full_pipe() as (read, write):
        if kind == "without a reader":
            os.close(read)
        yield {stream: write}


@pytest.mark.parametrize("kind", ["full", "without a reader", "closed"])
@pytest.mark.parametrize("flags", [("--log-level", "debug"), ("--log-format", "json")])
def test_nobody_reads_the_log(repository: Path, tmp_path: Path, kind: str, flags: tuple[str, ...]) -> None:
    source = repository / "digits" / "1"
    copied(source, tmp_path / "digits" / "1")
    with (
        unread("stderr", kind) as streams,
        serving(tmp_path, *flags, "--poll-seconds", "0.1", **streams) as service,
    ):
        service.call(MANY_CALLS if kind == "full" else 500)
        assert is_serving(service.target)
        wait_for(lambda: service.dropped() > 0 or kind == "closed")  # which is as /dev/null
        copied(source, tmp_path / "digits" / "2")
        wait_for(lambda: 'version="2"' in page(service.metrics_url))
        service.call(500)
        assert service.stop() == 0


@pytest.mark.parametrize("kind", ["full", "without a reader", "closed"])
def test_nobody_reads_the_ready_line(repository: Path, kind: str) -> None:
    with unread("stdout", kind) as streams, serving(repository, **streams) as service:
        service.call(500)
        assert service.stop() == 0


def test_a_slow_reader_gets_the_ready_line(repository: Path) -> None:
    with full_pipe() as (read, write), serving(repository, stdout=write) as service:
        service.call(500)
        line = lines_until(read, "metrics on")[-1]
        assert line == (f"glowserve: serving gRPC on {service.target}, metrics on {service.metrics_url}")
        assert service.stop() == 0


def test_a_slow_reader_is_told_how_many_lines_are_missing(repository: Path) -> None:
    with full_pipe() as (read, write), serving(repository, stderr=write) as service:
        service.call(MANY_CALLS)
        lines = lines_until(read, "missing")
        dropped = service.dropped()
        assert dropped > 0
        assert lines[-1].endswith(f": {dropped:.0f} log lines are missing here: nobody read them in time")
        assert sum("GetModel" in line for line in lines) == MANY_CALLS - dropped
        service.process.send_signal(signal.SIGTERM)
        assert "missing" not in "".join(lines_until(read, ": stopped"))
        assert service.process.wait(20) == 0


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_a_service_whose_log_nobody_reads(
    repository: Path, digits: UInt8Array, second: signal.Signals
) -> None:
    with (
        full_pipe() as (_, write),
        serving(repository, *STUCK, stderr=write) as service,
        connect(service.target) as stubs,
    ):
        call = stubs.glow.Score.future(pb.ScoreRequest(images=raw(digits[:1])))
        wait_for(lambda: value(service.metrics_url, "requests_in_flight") == 1)
        service.process.send_signal(signal.SIGTERM)
        wait_for(lambda: value(service.metrics_url, "ready") == 0)
        assert service.process.poll() is None
        service.process.send_signal(second)
        assert service.process.wait(20) == -second
        assert call.code() is grpc.StatusCode.UNAVAILABLE


def test_a_signal_while_models_are_loaded_ends_a_service_whose_log_nobody_reads(repository: Path) -> None:
    with full_pipe() as (_, write), started(repository, stderr=write) as service:
        wait_for(lambda: listens(service.target))
        assert service.stop() == 0


def test_what_grpc_writes_itself_does_not_stop_it(repository: Path, tmp_path: Path) -> None:
    """At its default verbosity, gRPC's own thread writes a line about each failed handshake."""
    certificate = trustme.CA().issue_cert("127.0.0.1")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "cert")
    certificate.private_key_pem.write_to_path(tmp_path / "key")
    flags = ("--tls-cert", str(tmp_path / "cert"), "--tls-key", str(tmp_path / "key"))
    environment = {name: text for name, text in os.environ.items() if name != "GRPC_VERBOSITY"}
    with full_pipe() as (_, write), started(repository, *flags, stderr=write, env=environment) as service:
        wait_for(lambda: listens(service.target))
        port = int(service.target.rpartition(":")[2])
        for _ in range(20):
            with socket.create_connection(("127.0.0.1", port), 60) as connection:
                connection.sendall(b"GET / HTTP/1.1\r\n\r\n")
                while connection.recv(1000):
                    pass
        assert service.stop() == 0


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
@pytest.mark.parametrize(
    "flags",
    [
        (),  # there is nothing to serve
        ("--max-batch-size", "0"),
        ("--max-batch-size", "many"),
        ("--no-such-flag",),
    ],
)
def test_a_start_that_fails_while_nobody_reads_ends(
    tmp_path: Path, stream: str, flags: tuple[str, ...]
) -> None:
    with unread(stream, "full") as streams, started(tmp_path, *flags, **streams) as service:
        assert service.process.wait(60) == 2
