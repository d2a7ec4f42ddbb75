"""Callers that each wait for an answer before the next call, and the rate and times that they see."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import grpc
import numpy as np

Call = Callable[[], Awaitable[bytes]]


@dataclass(frozen=True)
class Load:
    """One measurement."""

    rate: float
    """Answers a second."""

    p50: float
    p99: float
    """Of the calls' durations, in milliseconds."""
    calls: int = 0
    """How many calls there were, those of the warm-up included."""
    processor_ms: float = math.nan
    """The processor time of the server for each of them, in milliseconds; NaN where there is no server."""
    callers_ms: float = math.nan
    """That of the callers, likewise."""


@dataclass(frozen=True)
class Request:
    """A request, serialized once, that callers send again and again."""

    body: bytes
    method: str = ""
    """Of gRPC, /SERVICE/METHOD; "" for HTTP."""


async def load(calls: Sequence[Call], seconds: float) -> Load:
    """Lets callers call without a pause, and measures the calls that end after the warm-up.

    Args:
        calls: what each caller calls.
        seconds: how long the measurement takes, or longer until each caller has two answers. The warm-up takes as long,
            but a second at most.
    """
    begin = time.perf_counter() + min(1.0, seconds)
    ended = list[tuple[float, float]]()
    total = 0

    def over(now: float) -> bool:
        return now >= begin + seconds and len(ended) >= 2 * len(calls)

    async def keep_calling(call: Call) -> None:
        nonlocal total
        now = time.perf_counter()
        while not over(now):
            began = now
            await call()
            total += 1
            now = time.perf_counter()
            if now >= begin and not over(now):
                ended.append((now, now - began))

    await asyncio.gather(*map(keep_calling, calls))
    ends, durations = np.array(ended).T
    p50, p99 = 1000 * np.quantile(durations, (0.5, 0.99))
    return Load(rate(ends), float(p50), float(p99), total)


def rate(ends: Sequence[float] | np.ndarray) -> float:
    """How many calls end per second: the slope of their number over time.

    Calls end in batches: their number divided by the time would depend on whether a batch ends just inside the window.

    Args:
        ends: when calls ended, ascending, in seconds.
    """
    return float(np.polyfit(np.asarray(ends) - ends[0], np.arange(len(ends)), 1)[0])


@asynccontextmanager
async def connected(port: int, request: Request, callers: int) -> AsyncIterator[list[Call]]:
    """Callers of a server on this machine, over one gRPC connection, or over one HTTP connection each."""
    async with AsyncExitStack() as stack:
        if request.method:
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(f"127.0.0.1:{port}"))
            call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(request.method)
            yield [lambda: call(request.body)] * callers
        else:
            yield [await stack.enter_async_context(_http(port, request.body)) for _ in range(callers)]


@asynccontextmanager
async def _http(port: int, body: bytes) -> AsyncIterator[Call]:
    """A POST on a connection that stays open. To cost little, it understands just the HTTP that the servers send."""
    path = "/predict"  # LitServe answers there; Ray Serve answers on any path
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/octet-stream\r\n"
    message = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
    reader, writer = await asyncio.open_connection("127.0.0.1", port)

    async def call() -> bytes:
        nonlocal reader, writer
        writer.write(message)
        try:
            status, *headers = (await reader.readuntil(b"\r\n\r\n")).lower().split(b"\r\n")
        except (
            asyncio.IncompleteReadError,
            ConnectionResetError,
        ):  # a proxy that reconfigures itself closes it
            writer.close()
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(message)
            status, *headers = (await reader.readuntil(b"\r\n\r\n")).lower().split(b"\r\n")
        lengths = (int(line.partition(b":")[2]) for line in headers if line.startswith(b"content-length:"))
        length = next(lengths, 0)  # a proxy that has no server yet sends no length
        answer = await reader.readexactly(length)
        if b" 200 " not in status:
            raise ConnectionError(f"{status.decode()}: {answer.decode()[:200]}")
        return answer

    try:
        yield call
    finally:
        writer.close()
