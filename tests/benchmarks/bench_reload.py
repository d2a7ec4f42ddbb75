"""Answer times while a new version is loaded and swapped in, beside the times between swaps.

    python tests/benchmarks/bench_reload.py models/cifar/1 --rate 45

Calls arrive at random times, at a rate; half of the rate that saturates the service is the one of interest. For quiet
machines only.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import grpc
import numpy as np

from glowserve.messages import images_message
from glowserve.runtime.repository import open_bundle
from glowserve.v1 import glow_service_pb2 as pb
from glowserve.v1.glow_service_pb2_grpc import GlowServiceStub

_STEADY_SECONDS = 3.0
# Calls that begin so long after a swap still count as calls during it: they are the new version's first ones.
_AFTER_SECONDS = 0.1
_POLL_SECONDS = 0.02

Calls = list[tuple[float, float]]
"""When each call began, and how long it took, in seconds."""
Windows = list[tuple[float, float]]
"""When each swap began and ended, in seconds."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("bundle", type=Path, help="MODEL/VERSION/")
    parser.add_argument("--rate", type=float, default=45.0, help="calls a second, with one image each")
    parser.add_argument("--swaps", type=int, default=8)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        shutil.copytree(args.bundle, model / "1")
        command = [sys.executable, "-m", "glowserve", "serve", "--repository", folder, "--port", "0"]
        command += ["--metrics-port", "0", "--poll-seconds", "0.2", "--log-level", "warning"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout is not None
            target = server.stdout.readline().split(" on ")[1].split(",")[0]
            shape = open_bundle(args.bundle).shape
            calls, swaps = asyncio.run(_measure(target, model, shape, args.rate, args.swaps))
            server.terminate()
    processor = platform.processor() or platform.machine()
    print(f"{processor}, {os.cpu_count()} cores, {args.rate:g} calls a second")
    _print(calls, swaps)


def _print(calls: Calls, swaps: Windows) -> None:
    print(f"{len(calls)} calls, none failed; {len(swaps)} swaps, {np.mean(np.diff(swaps)):.2f} s on average")
    windows = [(began, ended + _AFTER_SECONDS) for began, ended in swaps]
    for name, in_swap in (("between swaps", False), ("during swaps", True)):
        durations = [
            seconds
            for began, seconds in calls
            if any(first <= began <= last for first, last in windows) is in_swap
        ]
        p50, p99, longest = (1000 * np.quantile(durations, q) for q in (0.5, 0.99, 1.0))
        print(f"{name}: {len(durations)} calls, p50 {p50:.1f} ms, p99 {p99:.1f} ms, longest {longest:.1f} ms")


async def _measure(
    target: str, model: Path, shape: tuple[int, int, int], rate: float, swaps: int
) -> tuple[Calls, Windows]:
    image = np.random.default_rng(0).integers(0, 256, (1, *shape), np.uint8)
    request = pb.ScoreRequest(images=images_message(image))
    calls, windows = Calls(), Windows()
    async with grpc.aio.insecure_channel(target) as channel, asyncio.TaskGroup() as group:
        stub = GlowServiceStub(channel)

        async def call() -> None:
            began = time.monotonic()
            await stub.Score(request)
            calls.append((began, time.monotonic() - began))

        async def arrive() -> None:
            due = time.monotonic()
            while True:
                group.create_task(call())
                due += random.expovariate(rate)
                await asyncio.sleep(max(0.0, due - time.monotonic()))

        arrivals = group.create_task(arrive())
        await asyncio.sleep(_STEADY_SECONDS)
        calls.clear()  # the first calls opened the connection
        for version in range(2, 2 + swaps):
            windows.append(await _swap(stub, model, version))
        arrivals.cancel()
    return calls, windows


async def _swap(stub: GlowServiceStub, model: Path, version: int) -> tuple[float, float]:
    """Lets a version appear in the repository; returns when it appeared and when it was served."""
    staging = model / f".staging-{version}"
    await asyncio.to_thread(shutil.copytree, model / "1", staging)
    await asyncio.sleep(_STEADY_SECONDS)
    began = time.monotonic()
    staging.rename(model / str(version))
    while (await stub.ListModels(pb.ListModelsRequest())).models[0].model.version != version:
        await asyncio.sleep(_POLL_SECONDS)
    return began, time.monotonic()


if __name__ == "__main__":
    main()
