"""One caller: the service and `glowserve.open` beside runs of the graph alone on all cores, and the memory it takes.

    python tests/benchmarks/bench_threads.py                    # the medium model and the paper's
    python tests/benchmarks/bench_threads.py --model medium

The caller calls Score with one raw image, and waits for the answer before the next call. The service is measured with
default settings, and with `--threads 1`, where a run never takes more than one core. For quiet machines; Linux.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import time
from pathlib import Path

import numpy as np
from graph_alone import CORES, Setting, measure_alone
from load import Load, connected, load
from models import MODELS, bundle, describe, random_images
from running import Server, running, server_process
from services import glowserve_serve

import glowserve

_GOAL_RATIO, _GOAL_MS = 1.15, 1.0
"""The most that a call may take: so many times a run of the graph, and so many milliseconds."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--model", choices=MODELS, action="append", help="only this one; may be given several times"
    )
    parser.add_argument("--seconds", type=float, default=2.0, help="of a measurement")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    print(f"{CORES} cores; medians of {args.rounds} rounds of {args.seconds:g} s")
    for name in args.model or ("medium", "paper"):
        version = bundle(name)
        print(f"\n## {describe(name)}\n", flush=True)
        _measure(version, args.seconds, args.rounds)


def _measure(version: Path, seconds: float, rounds: int) -> None:
    wide, narrow = glowserve_serve(version, 1), glowserve_serve(version, 1, "--threads", "1")
    times: dict[str, list[float]] = {}
    memory: dict[str, float] = {}
    for _ in range(rounds):
        for threads in sorted({1, CORES}):
            alone = measure_alone(version, Setting(1, 1, threads), seconds, "cpu")
            times.setdefault(f"ONNX Runtime alone, {threads} threads", []).append(alone.p50)
        times.setdefault("glowserve.open", []).append(_embedded(version, seconds))
        for server in (narrow, wide):
            measured, memory[server.name] = asyncio.run(_served(server, seconds))
            times.setdefault(server.name, []).append(measured.p50)
    print("| one caller | p50 ms | peak memory MiB |\n|---|---:|---:|")
    for row, found in times.items():
        mib = f"{memory[row]:.0f}" if row in memory else ""
        print(f"| {row} | {np.median(found):.2f} | {mib} |")
    *alone_rows, _, _, ours = times
    best = np.min([times[row] for row in alone_rows], axis=0)
    most = np.median(_GOAL_RATIO * best + _GOAL_MS)
    print(
        f"\n- at most {most:.2f} ms is the goal: {_GOAL_RATIO} times the best run of the graph, and {_GOAL_MS:g} ms"
    )
    print(f"- {ours}: {np.median(times[ours] / best):.2f} times the best run of the graph")


async def _served(server: Server, seconds: float) -> tuple[Load, float]:
    """What one caller sees, and the server's peak memory in MiB."""
    async with running(server) as port, connected(port, server.request, 1) as calls:
        measured = await load(calls, seconds)
        status = Path(f"/proc/{server_process()}/status").read_text()
        return measured, int(status.partition("VmHWM:")[2].split()[0]) / 1024


def _embedded(version: Path, seconds: float) -> float:
    """The median of a call's duration, in milliseconds, in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_measure_embedded, (version, seconds))


def _measure_embedded(version: Path, seconds: float) -> float:
    image, durations = random_images(version.parent.name, 1), list[float]()
    with glowserve.open(version, device="cpu") as client:
        client.score(image)
        end = time.perf_counter() + seconds
        while (began := time.perf_counter()) < end:
            client.score(image)
            durations.append(time.perf_counter() - began)
    return float(1000 * np.median(durations))


if __name__ == "__main__":
    main()
