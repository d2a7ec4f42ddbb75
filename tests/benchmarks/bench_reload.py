"""What callers notice of a new version: the time of calls while it is loaded and swapped in, beside the usual.

    python tests/benchmarks/bench_reload.py models/cifar/1 --rate 45

Callers come at random, at a rate a second; about half of what the machine can answer is of interest. For quiet
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

_USUAL_SECONDS = 3.0
# Calls that begin so long after the swap are the first that the new version answers.
_AFTER_SECONDS = 0.1


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("bundle", type=Path, help="MODEL/VERSION/")
    parser.add_argument("--rate", type=float, default=45.0, help="calls a second, of an image each")
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
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {args.rate:g} calls a second"
    )
    print(
        f"{len(calls)} calls, none failed; {len(swaps)} swaps of {np.mean(np.diff(swaps)):.2f} s in the mean"
    )
    ends = [(began, ended + _AFTER_SECONDS) for began, ended in swaps]
    for name, wanted in (("usual", False), ("while a version is loaded and swapped in", True)):
        took = [took for at, took in calls if any(a <= at <= b for a, b in ends) is wanted]
        p50, p99, worst = (1000 * np.quantile(took, q) for q in (0.5, 0.99, 1.0))
        print(f"{name}: {len(took)} calls, p50 {p50:.1f} ms, p99 {p99:.1f} ms, worst {worst:.1f} ms")


async def _measure(
    target: str, model: Path, shape: tuple[int, int, int], rate: float, swaps: int
) -> tuple[list[tuple[float, float]], list[tuple[float, float]]]:
    """Beginning and duration of every call; beginning and end of every swap."""
    image = np.random.default_rng(0).integers(0, 256, (1, *shape), np.uint8)
    request = pb.ScoreRequest(images=images_message(image))
    calls, windows = list[tuple[float, float]](), list[tuple[float, float]]()
    async with grpc.aio.insecure_channel(target) as channel, asyncio.TaskGroup() as group:
        stub = GlowServiceStub(channel)

        async def ask() -> None:
            began = time.monotonic()
            await stub.Score(request)
            calls.append((began, time.monotonic() - began))

        async def arrive() -> None:
            due = time.monotonic()
            while True:
                group.create_task(ask())
                due += random.expovariate(rate)
                await asyncio.sleep(max(0.0, due - time.monotonic()))

        arrivals = group.create_task(arrive())
        await asyncio.sleep(_USUAL_SECONDS)
        calls.clear()  # the first ones opened the connection
        for version in range(2, 2 + swaps):
            staging = model / f".staging-{version}"
            await asyncio.to_thread(shutil.copytree, model / "1", staging)
            await asyncio.sleep(_USUAL_SECONDS)
            began = time.monotonic()
            staging.rename(model / str(version))
            while (await stub.ListModels(pb.ListModelsRequest())).models[0].model.version != version:
                await asyncio.sleep(0.02)
            windows.append((began, time.monotonic()))
        arrivals.cancel()
    return calls, windows


if __name__ == "__main__":
    main()
