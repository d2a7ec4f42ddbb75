"""What front-ends gain and cost, and how many of them one engine process could feed.

    python tests/benchmarks/bench_frontends.py
    python tests/benchmarks/bench_frontends.py --frontends 1 2 4 8 --model medium

64 callers on 16 connections or more call Score with one raw image, with each number of front-ends in turn. The last
column is computed: the event loop of the engine process is what all front-ends share, so it could feed as many as
their processor time of a call is a multiple of its own. Linux.
"""

from __future__ import annotations

import argparse
import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import grpc
from graph_alone import CORES
from load import Call, Request, load
from models import bundle, describe
from running import processor_seconds, running, server_process
from services import glowserve_serve

_LEAST_CONNECTIONS, _CONNECTIONS_EACH = 16, 4


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--frontends", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--model", choices=("tiny", "medium"), default="tiny")
    parser.add_argument("--callers", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=5.0, help="of a measurement")
    args = parser.parse_args()
    print(f"{CORES} cores; {describe(args.model)}; {args.callers} callers\n")
    print("| front-ends | calls/s | p50 ms | processor ms a call | engine | its event loop | could feed |")
    print("|---:|---:|---:|---:|---:|---:|---:|")
    for _ in range(args.rounds):
        for count in args.frontends:
            asyncio.run(_measure(count, args))


async def _measure(count: int, args: argparse.Namespace) -> None:
    server = glowserve_serve(bundle(args.model), 1, "--frontends", str(count))
    connections = max(_LEAST_CONNECTIONS, _CONNECTIONS_EACH * count)
    async with running(server) as port, _connected(port, server.request, args.callers, connections) as calls:
        engine = server_process()
        before = _seconds(engine)
        measured = await load(calls, args.seconds)
        whole, own, loop = (
            1000 * (after - start) / measured.calls
            for after, start in zip(_seconds(engine), before, strict=True)
        )
    feeds = f"{(whole - own) / loop:.1f}" if count > 1 else ""
    print(
        f"| {count} | {measured.rate:.0f} | {measured.p50:.1f} | {whole:.3f} | {own:.3f} | {loop:.3f} | {feeds} |",
        flush=True,
    )


@asynccontextmanager
async def _connected(
    port: int, request: Request, callers: int, connections: int
) -> AsyncIterator[Sequence[Call]]:
    """Callers that share so many connections."""
    async with AsyncExitStack() as stack:
        methods = []
        for _ in range(connections):
            options = [("grpc.use_local_subchannel_pool", 1)]
            channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}", options)
            await stack.enter_async_context(channel)
            methods.append(channel.unary_unary(request.method))
        yield [lambda method=methods[i % connections]: method(request.body) for i in range(callers)]


def _seconds(engine: int) -> tuple[float, float, float]:
    """The processor time of a service, of its engine process alone, and of that one's event loop."""
    own = sum(_ticks(task) for task in Path(f"/proc/{engine}/task").iterdir())
    loop = _ticks(Path(f"/proc/{engine}/task/{engine}"))
    second = os.sysconf("SC_CLK_TCK")
    return processor_seconds(engine), own / second, loop / second


def _ticks(task: Path) -> int:
    fields = (task / "stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


if __name__ == "__main__":
    main()
