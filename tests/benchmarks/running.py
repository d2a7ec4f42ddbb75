"""Servers to measure: how to run them, and what to ask them."""

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
from dataclasses import dataclass, field
from pathlib import Path

import grpc
from load import Load, Request, connected, load

SERVERS, OUT = Path(__file__).parent / "servers", Path("out/bench")
"""Where the scripts of servers are, and where what is made for a benchmark goes."""

_START_SECONDS, _STOP_SECONDS = 180.0, 20.0


@dataclass(frozen=True)
class Server:
    """How to run a server, and what to ask it."""

    name: str
    command: tuple[str, ...]
    """Without its port."""
    request: Request
    environment: dict[str, str] = field(default_factory=dict)


async def measure(server: Server, callers: tuple[int, ...], seconds: float) -> dict[int, Load]:
    """What so many callers see of a server, for each number of them."""
    async with running(server) as port:
        found = {}
        for count in callers:
            async with connected(port, server.request, count) as calls:
                found[count] = await load(calls, seconds)
        return found


@asynccontextmanager
async def running(server: Server) -> AsyncIterator[int]:
    """The port of a server that answers; it ends with all of its processes."""
    port, log = free_port(), OUT / "server.log"
    environment = os.environ | {"PYTHONPATH": str(SERVERS)} | server.environment
    with log.open("w") as file:
        command = (*server.command, "--port", str(port))
        process = subprocess.Popen(command, stdout=file, stderr=file, env=environment, start_new_session=True)
    try:
        await _until_it_answers(server, process, port, log)
        yield port
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_SECONDS)
        with contextlib.suppress(ProcessLookupError):  # what it left behind
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


async def _until_it_answers(server: Server, process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    patience = time.monotonic() + _START_SECONDS
    while True:
        await asyncio.sleep(0.2)
        try:
            async with connected(port, server.request, 1) as (call,):
                await asyncio.wait_for(call(), 5)
            return
        except (OSError, EOFError, TimeoutError, grpc.aio.AioRpcError) as error:
            if process.poll() is not None or time.monotonic() > patience:
                raise SystemExit(f"{server.name} does not answer: {error}; {log} says why") from error


def free_port() -> int:
    """One of two ports side by side that nobody listens on."""
    with socket.socket() as first, socket.socket() as second:
        first.bind(("127.0.0.1", 0))
        with contextlib.suppress(OSError):
            second.bind(("127.0.0.1", first.getsockname()[1] + 1))
            return int(first.getsockname()[1])
    return free_port()
