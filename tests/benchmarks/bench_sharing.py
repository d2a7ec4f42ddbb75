"""A fast model beside a slow one, and how many answers of the slow one are in time under deadlines.

    python tests/benchmarks/bench_sharing.py                 # a minute, and one for each --compare
    python tests/benchmarks/bench_sharing.py --compare old=../old/.venv/bin/python

The slow model has the paper's size. First one caller of the fast model has the service to itself, then 60 callers of
the slow one call at the same time: once the fast model's caller calls without a pause, and once with pauses. Then 40
callers of the slow model alone have deadlines; a call that fails is repeated after 50 ms. All call Score with one raw
image. For quiet machines; Linux.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, replace
from pathlib import Path

import grpc
import numpy as np
from bench_service import checkout
from graph_alone import CORES
from models import MODELS, bundle, describe, random_images
from running import Server, running
from services import glowserve_serve, package_folder

from glowserve.messages import images_message
from glowserve.v1 import glow_service_pb2 as pb
from glowserve.v1.glow_service_pb2_grpc import GlowServiceStub

_SLOW_CALLERS, _DEADLINE_CALLERS = 60, 40
_PAUSE_SECONDS, _RETRY_SECONDS = 0.2, 0.05


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--fast", choices=MODELS, default="tiny")
    parser.add_argument("--slow", choices=MODELS, default="paper")
    parser.add_argument("--seconds", type=float, default=8.0, help="of a measurement")
    parser.add_argument("--deadline", type=float, default=1.0, help="of the slow model's callers, in seconds")
    parser.add_argument(
        "--sizes", type=int, nargs="*", default=[1], help="fixed largest batches to compare with"
    )
    parser.add_argument(
        "--compare",
        action="append",
        default=[],
        type=checkout,
        metavar="NAME=PYTHON",
        help="measure `PYTHON -m glowserve serve` too: another checkout; may be given several times",
    )
    args = parser.parse_args()
    print(
        f"{CORES} cores; {args.seconds:g} s a measurement; callers of the slow model have {args.deadline:g} s"
    )
    print(f"slow is {describe(args.slow)}; fast is {describe(args.fast)}\n")
    with tempfile.TemporaryDirectory() as folder:
        for name in (args.fast, args.slow):
            (Path(folder) / name).symlink_to(bundle(name).parent, target_is_directory=True)
        print(
            "| | fast model alone, p50 ms | beside | p99 | with pauses | p99 | slow answers/s | in time | failed |"
        )
        print("|---|---:|---:|---:|---:|---:|---:|---:|---:|")
        for name, python in {"glowserve serve": sys.executable, **dict(args.compare)}.items():
            asyncio.run(_measure(_server(args, folder, python=python, name=name), args))
        for size in args.sizes:
            asyncio.run(_measure_in_time(_server(args, folder, "--max-batch-size", str(size)), args))
    for name, python in args.compare:
        print(f"\n{name} is {package_folder(python)}")


def _server(args: argparse.Namespace, folder: str, *flags: str, **options: str) -> Server:
    server = glowserve_serve(Path(folder) / args.slow / "1", 1, *flags, **options)
    return replace(server, request=replace(server.request, body=_request(args.slow).SerializeToString()))


def _request(model: str) -> pb.ScoreRequest:
    return pb.ScoreRequest(images=images_message(random_images(model, 1)), model=pb.ModelSpec(name=model))


@dataclass
class _Calls:
    """What the callers of a model have seen."""

    durations: list[float] = field(default_factory=list)
    """Of answers, in seconds."""
    failed: int = 0

    def __str__(self) -> str:
        return " | ".join(f"{1000 * np.quantile(self.durations, q):.1f}" for q in (0.5, 0.99))


async def _measure(server: Server, args: argparse.Namespace) -> None:
    async with running(server) as port, grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = _caller(channel)
        alone = await _during(args.seconds / 2, [args.fast], call)
        slow = _Calls()
        others = [asyncio.create_task(call(slow, args.slow)) for _ in range(_SLOW_CALLERS)]
        await asyncio.sleep(2)
        before = len(slow.durations)
        beside = await _during(args.seconds, [args.fast], call)
        answers = (len(slow.durations) - before) / args.seconds
        paused = await _during(args.seconds, [args.fast], call, pause=_PAUSE_SECONDS)
        await _cancel(others)
        in_time = await _during(args.seconds, [args.slow] * _DEADLINE_CALLERS, call, deadline=args.deadline)
    print(
        f"| {server.name} | {str(alone).partition(' | ')[0]} | {beside} | {paused} | {answers:.1f} | "
        f"{len(in_time.durations)} | {in_time.failed} |",
        flush=True,
    )


async def _measure_in_time(server: Server, args: argparse.Namespace) -> None:
    async with running(server) as port, grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = _caller(channel)
        in_time = await _during(args.seconds, [args.slow] * _DEADLINE_CALLERS, call, deadline=args.deadline)
    print(f"| {server.name} | | | | | | | {len(in_time.durations)} | {in_time.failed} |", flush=True)


_Caller = Callable[..., Coroutine[object, object, None]]


def _caller(channel: grpc.aio.Channel) -> _Caller:
    stub = GlowServiceStub(channel)

    async def call(calls: _Calls, model: str, *, pause: float = 0.0, deadline: float | None = None) -> None:
        request = _request(model)
        while True:
            began = time.perf_counter()
            try:
                await stub.Score(request, timeout=deadline)
                calls.durations.append(time.perf_counter() - began)
                await asyncio.sleep(pause)
            except grpc.aio.AioRpcError:
                calls.failed += 1
                await asyncio.sleep(_RETRY_SECONDS)

    return call


async def _during(seconds: float, models: list[str], call: _Caller, **options: float) -> _Calls:
    """What callers of these models see together."""
    calls = _Calls()
    tasks = [asyncio.create_task(call(calls, model, **options)) for model in models]
    await asyncio.sleep(seconds)
    await _cancel(tasks)
    return calls


async def _cancel(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.gather(*tasks, return_exceptions=True)


if __name__ == "__main__":
    main()
