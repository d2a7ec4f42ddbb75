"""Callers that each wait for one answer before they ask again, and what they see of a server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import grpc
import numpy as np

Call = Callable[[], Awaitable[bytes]]


@dataclass(frozen=True)
class Load:
    """What callers saw."""

    rate: float
    """Answers a second."""

    p50: float
    p99: float
    """Milliseconds of a call."""


@dataclass(frozen=True)
class Request:
    """What is asked, over and over: bytes that are made once."""

    body: bytes
    method: str = ""
    """Of gRPC, /SERVICE/METHOD; "" for HTTP."""


async def load(calls: Sequence[Call], seconds: float) -> Load:
    """Keeps callers busy, and looks at the calls that end in a stretch of time, after as much again to warm up.

    Args:
        calls: what each of them does.
        seconds: of that stretch, if each caller has two answers by then; warming up takes a second at most.
    """
    begin = time.perf_counter() + min(1.0, seconds)
    calls_took = list[tuple[float, float]]()

    def over(now: float) -> bool:
        return now >= begin + seconds and len(calls_took) >= 2 * len(calls)

    async def keep_calling(call: Call) -> None:
        done = time.perf_counter()
        while not over(done):
            began = done
            await call()
            done = time.perf_counter()
            if done >= begin and not over(done):
                calls_took.append((done, done - began))

    await asyncio.gather(*map(keep_calling, calls))
    ends, took = np.array(calls_took).T
    p50, p99 = 1000 * np.quantile(took, (0.5, 0.99))
    return Load(rate(ends), float(p50), float(p99))


def rate(ends: Sequence[float] | np.ndarray) -> float:
    """How many end a second: the slope of their count. Where they come in batches, a window's edges would decide."""
    return float(np.polyfit(np.asarray(ends) - ends[0], np.arange(len(ends)), 1)[0])


@asynccontextmanager
async def connected(port: int, request: Request, callers: int) -> AsyncIterator[list[Call]]:
    """As many callers of a server on this machine: over one connection of gRPC, or one of HTTP each."""
    async with AsyncExitStack() as stack:
        if request.method:
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(f"127.0.0.1:{port}"))
            ask: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(request.method)
            yield [lambda: ask(request.body)] * callers
        else:
            yield [await stack.enter_async_context(_http(port, request.body)) for _ in range(callers)]


@asynccontextmanager
async def _http(port: int, body: bytes) -> AsyncIterator[Call]:
    """A POST on a connection that is kept. It knows as much HTTP as that takes, to cost as little as it can."""
    path = "/predict"  # where LitServe answers; Ray Serve answers everywhere
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/octet-stream\r\n"
    message = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
    reader, writer = await asyncio.open_connection("127.0.0.1", port)

    async def call() -> bytes:
        nonlocal reader, writer
        writer.write(message)
        try:
            status, *headers = (await reader.readuntil(b"\r\n\r\n")).lower().split(b"\r\n")
        except (asyncio.IncompleteReadError, ConnectionResetError):  # a proxy hangs up when it is set up anew
            writer.close()
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(message)
            status, *headers = (await reader.readuntil(b"\r\n\r\n")).lower().split(b"\r\n")
        lengths = (int(line.partition(b":")[2]) for line in headers if line.startswith(b"content-length:"))
        length = next(lengths, 0)  # a proxy that has nothing behind it yet says none
        answer = await reader.readexactly(length)
        if b" 200 " not in status:
            raise ConnectionError(f"{status.decode()}: {answer.decode()[:200]}")
        return answer

    try:
        yield call
    finally:
        writer.close()
