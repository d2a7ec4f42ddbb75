"""Processor time of a call without gRPC: Score with one raw image of the tiny model, by 64 callers in one process.

    python tests/benchmarks/bench_calls.py
    PYTHONPATH=OLD:OLD/service ../old/.venv/bin/python tests/benchmarks/bench_calls.py    # another checkout

The callers call the service's handlers in its own event loop, so that batches are full and nothing but the service
takes time. Processor time tells two checkouts apart on a busy machine, too. Run them in turns.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

from glowserve_service.config import ServiceConfig
from glowserve_service.front.front import SERVICE_NAME
from glowserve_service.observability import logs
from glowserve_service.server import Server
from models import bundle, random_images

from glowserve.messages import images_message
from glowserve.v1 import glow_service_pb2 as pb

_CALLERS = 64


class _Context:
    """In place of gRPC's: has a request, and no deadline."""

    def __init__(self, request: bytes) -> None:
        self._request = request

    async def read(self) -> bytes:
        await asyncio.sleep(0)  # the event loop turns before a message is there
        return self._request

    def time_remaining(self) -> None:
        return None

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return (("user-agent", "grpc-python-asyncio"),)

    def set_trailing_metadata(self, _: Any) -> None:
        pass

    def peer(self) -> str:
        return "ipv4:127.0.0.1:50000"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--calls", type=int, default=2000, help="of a round")
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    writer = logs.set_up("text", "info")
    try:
        asyncio.run(_measure(bundle("tiny").parent.parent, args.calls, args.rounds))
    finally:
        writer.close()


async def _measure(repository: Path, calls: int, rounds: int) -> None:
    server = Server(ServiceConfig(repository=repository, port=0, metrics_port=0))
    await server.start()
    details: Any = SimpleNamespace(method=f"/{SERVICE_NAME}/Score", invocation_metadata=())
    images = random_images("tiny", _CALLERS)
    requests = [pb.ScoreRequest(images=images_message(each[None])).SerializeToString() for each in images]

    async def keep_calling(request: bytes) -> None:
        for _ in range(calls // _CALLERS):
            handler: Any = server.front.middleware.service(details)
            await asyncio.create_task(handler.stream_unary(None, _Context(request)))

    loop, process = list[float](), list[float]()
    for _ in range(rounds + 1):  # the first one is the warm-up
        before = time.thread_time(), time.process_time()
        await asyncio.gather(*map(keep_calling, requests))
        n = calls // _CALLERS * _CALLERS
        loop.append(1e6 * (time.thread_time() - before[0]) / n)
        process.append(1e6 * (time.process_time() - before[1]) / n)
    print(f"event loop {median(loop[1:]):.0f} us a call, all threads {median(process[1:]):.0f} us a call")
    await server.stop()


if __name__ == "__main__":
    main()
