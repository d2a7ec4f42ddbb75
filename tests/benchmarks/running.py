"""Runs a server as a process, and measures what its callers see."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import grpc
from load import Load, Request, connected, load

SERVERS = Path(__file__).parent / "servers"
"""The scripts of the other servers."""

OUT = Path("out/bench").absolute()
"""Where benchmarks put models, environments and logs."""

_START_SECONDS, _STOP_SECONDS = 180.0, 20.0


@dataclass(frozen=True)
class Server:
    """A command that starts a server, and a request for it."""

    name: str
    command: tuple[str, ...]
    """Without `--port PORT`, which is added."""
    request: Request
    environment: dict[str, str] = field(default_factory=dict)
    """Additional variables."""


async def measure(server: Server, callers: tuple[int, ...], seconds: float) -> dict[int, Load]:
    """Starts a server, and measures it with each number of callers.

    Args:
        server: what is measured.
        callers: the numbers of callers.
        seconds: how long each measurement takes; see `load.load`.
    """
    async with running(server) as port:
        found = {}
        for count in callers:
            async with connected(port, server.request, count) as calls:
                before, callers_before = processor_seconds(server_process()), time.process_time()
                measured = await load(calls, seconds)
                spent = processor_seconds(server_process()) - before
                callers_spent = time.process_time() - callers_before
                found[count] = replace(
                    measured,
                    processor_ms=1000 * spent / measured.calls,
                    callers_ms=1000 * callers_spent / measured.calls,
                )
        return found


def server_process() -> int:
    """The number of the process that `running` has started: the newest one that this one has."""
    return max(process for process, (parent, _) in _processes().items() if parent == os.getpid())


def processor_seconds(process: int) -> float:
    """The processor time of a process and of those that it has started, in seconds; ended ones count, too."""
    processes = _processes()

    def ticks(process: int) -> int:
        return processes[process][1] + sum(
            ticks(each) for each, (parent, _) in processes.items() if parent == process
        )

    return ticks(process) / os.sysconf("SC_CLK_TCK")


def memory_mb(process: int, *, peak: bool) -> float:
    """The memory of a process and of those that it has started, in MB; what they share counts for each.

    Args:
        process: its number.
        peak: the most since `forget_peak`, in place of what it has now.
    """
    key = "VmHWM:" if peak else "VmRSS:"
    kib = 0
    for each in _family(process):
        with contextlib.suppress(OSError):
            lines = map(str.split, Path(f"/proc/{each}/status").read_text().splitlines())
            kib += sum(int(line[1]) for line in lines if line[0] == key)
    return kib * 1024 / 1e6


def forget_peak(process: int) -> None:
    """From now on, the peak of the memory of a process and of those that it has started counts from here."""
    for each in _family(process):
        with contextlib.suppress(OSError):
            Path(f"/proc/{each}/clear_refs").write_text("5")


def _family(process: int) -> set[int]:
    """A process and those that it has started."""
    processes, found = _processes(), {process}
    while more := {each for each, (parent, _) in processes.items() if parent in found} - found:
        found |= more
    return found


def _processes() -> dict[int, tuple[int, int]]:
    """The parent and the processor time, in ticks, of every process."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has just ended
            # The first two fields are the number and the name, which may hold spaces and ends with the last bracket.
            fields = path.read_text().rpartition(")")[2].split()
            found[int(path.parent.name)] = int(fields[1]), sum(map(int, fields[11:15]))
    return found


@asynccontextmanager
async def running(server: Server) -> AsyncIterator[int]:
    """Starts a server, and yields its port once it answers. At the end, all its processes are ended.

    It runs in `OUT`: in a checkout, `python -m glowserve` would import the package there, whatever Python runs it.
    """
    OUT.mkdir(parents=True, exist_ok=True)
    port, log = free_port(), OUT / "server.log"
    # No server shall report to anybody while it is measured; ONNX Runtime by default does.
    quiet = {"ORT_DISABLE_TELEMETRY": "1"}
    environment = os.environ | quiet | {"PYTHONPATH": str(SERVERS)} | server.environment
    command = (*server.command, "--port", str(port))
    with log.open("w") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=file, env=environment, cwd=OUT, start_new_session=True
        )
    try:
        await _until_it_answers(server, process, port, log)
        yield port
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_SECONDS)
        with contextlib.suppress(ProcessLookupError):  # there may be child processes
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


async def _until_it_answers(server: Server, process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while True:
        await asyncio.sleep(0.2)
        try:
            async with connected(port, server.request, 1) as (call,):
                await asyncio.wait_for(call(), 5)
            return
        except (OSError, EOFError, TimeoutError, grpc.aio.AioRpcError) as error:
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"{server.name} does not answer: {error}; {log} says why") from error


def free_port() -> int:
    """A free port, followed by another free port: MLServer takes two."""
    with socket.socket() as first, socket.socket() as second:
        first.bind(("127.0.0.1", 0))
        with contextlib.suppress(OSError):
            second.bind(("127.0.0.1", first.getsockname()[1] + 1))
            return int(first.getsockname()[1])
    return free_port()
