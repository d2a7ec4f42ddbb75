"""Speed of the service beside the bare graph, an empty gRPC server, LitServe, MLServer and Ray Serve.

    python tests/benchmarks/bench_service.py
    python tests/benchmarks/bench_service.py --model tiny --seconds 1 --rounds 1    # whether it runs
    python tests/benchmarks/bench_service.py --device cuda --images 32 --others     # with glowserve[gpu]

Callers ask for the score of one image, or so many, raw, and wait for it before they ask again; they share the
machine's cores with the server. What is compared takes turns, each time as new processes, alone on the machine. The
others are installed from PyPI into out/bench/, and run with each of some settings before the best one counts. Quiet
machines only; Linux.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.metadata
import math
import multiprocessing
import os
import platform
import statistics
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
from load import Load, Request, connected, load, rate
from others import NAMES, REQUIREMENTS, install, variants
from prometheus_client.parser import text_string_to_metric_families
from running import OUT, SERVERS, Server, free_port, measure, running

from glowserve.messages import images_message
from glowserve.runtime.config import RuntimeConfig
from glowserve.v1 import glow_service_pb2 as pb

_CORES = os.cpu_count() or 1
_BATCHES, _CALLERS = (1, 8, 32), (64, 8, 1)
_TRIAL_SECONDS = 2.0

# The demo's, and one of the size that the recipe for CIFAR-10 would like.
_MODELS: dict[str, dict[str, Any]] = {
    "tiny": {"image_size": 8, "channels": 1, "levels": 2, "steps_per_level": 12, "width": 64},
    "medium": {"image_size": 32, "channels": 3, "levels": 3, "steps_per_level": 16, "width": 256},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", choices=_MODELS, help="only this one")
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu", help="of ours and of ONNX Runtime"
    )
    parser.add_argument("--images", type=int, default=1, help="in a call")
    parser.add_argument("--seconds", type=float, default=3.0, help="of a measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--others", nargs="*", choices=NAMES, default=list(NAMES), help="only these, or none")
    args = parser.parse_args()
    if args.images > 1 and args.others:
        parser.error("the others take one image a call; give --others and no name with --images")
    for other in args.others:
        install(other)
    versions = (f"{name} {importlib.metadata.version(name)}" for name in ("onnxruntime", "grpcio"))
    print(
        f"{platform.processor() or platform.machine()}, {_CORES} cores, Python {platform.python_version()}, ",
        end="",
    )
    print(", ".join((*versions, *(REQUIREMENTS[other][0] for other in args.others))))
    print(
        f"Medians of {args.rounds} rounds of {args.seconds:g} s that take turns, and of the ratios in each round."
    )
    models = {name: _model(name) for name in ([args.model] if args.model else _MODELS)}
    asyncio.run(_compare_all(models, args))


async def _compare_all(models: Mapping[str, Path], args: argparse.Namespace) -> None:
    for name, version in models.items():
        size = _MODELS[name]
        print(f"\n## {name}: {size['image_size']}x{size['image_size']}x{size['channels']}, ", end="")
        print(f"K={size['steps_per_level']} L={size['levels']} width={size['width']}\n", flush=True)
        await _compare(version, args)


async def _compare(version: Path, args: argparse.Namespace) -> None:
    device, images = args.device, args.images
    flags = () if device == "cpu" else ("--device", device)
    ours, quiet = _ours(version, images, *flags), _ours(version, images, *flags, "--log-level", "warning")
    echo = _echo(version, images)
    trial = min(_TRIAL_SECONDS, args.seconds)
    others = [await _best_of(other, version, trial) for other in args.others]
    best = max(_bare_settings(device), key=lambda setting: _bare(version, setting, trial, device).rate)
    limit = f"ONNX Runtime alone, batches of {best[0]}, {best[1]} x {best[2]} threads"
    threads = sorted({1, _CORES}) if device == "cpu" else (1,)
    runs = {f"ONNX Runtime alone, {images} at a time, {n} threads": (images, 1, n) for n in threads}
    alone, slow = next(iter(runs)), None
    found: defaultdict[str, list[Load]] = defaultdict(list)
    for _ in range(args.rounds):
        for row, setting in {limit: best, **runs}.items():
            found[row].append(_bare(version, setting, args.seconds, device))
        slow = slow or _asleep(echo, found[alone][0].p50)
        turns = (
            (ours, _CALLERS),
            (quiet, (64,)),
            (echo, (64, 1)),
            (slow, (1,)),
            *((o, (64,)) for o in others),
        )
        for server, callers in turns:
            for count, seen in (await measure(server, callers, args.seconds)).items():
                found[_row(server, count)].append(replace(seen, rate=images * seen.rate))
    _print_table(found)
    for server in (ours, quiet):
        for base in (limit, *(_row(other, 64) for other in (echo, *others))):
            _print_ratio(_row(server, 64), base, found)
    if device == "cpu":
        _print_limit(_row(ours, 64), limit, _row(echo, 64), found)
    for run in runs:
        _print_wait(_row(ours, 1), run, _row(echo, 1), found)
    assert slow
    over = [o.p50 - s.p50 for o, s in zip(found[_row(ours, 1)], found[_row(slow, 1)], strict=True)]
    print(f"- {_row(ours, 1)}: p50 {statistics.median(over):.2f} ms over {_row(slow, 1)}")
    await _print_stages(ours, args.seconds)


def _print_table(found: Mapping[str, list[Load]]) -> None:
    print("\n| | images/s | p50 ms | p99 ms |\n|---|---:|---:|---:|")
    for row, loads in found.items():
        columns = (
            statistics.median(getattr(each, what) for each in loads) for what in ("rate", "p50", "p99")
        )
        print("| {} | {:.1f} | {:.2f} | {:.2f} |".format(row, *columns))
    print()


def _print_ratio(row: str, base: str, found: Mapping[str, list[Load]]) -> None:
    ratios = [ours.rate / theirs.rate for ours, theirs in zip(found[row], found[base], strict=True)]
    print(f"- {row}: {statistics.median(ratios):.2f} x {base}")


def _print_limit(row: str, run: str, empty: str, found: Mapping[str, list[Load]]) -> None:
    """What callers would see of a server that did nothing but take calls and run graphs, on the same cores."""
    rows = zip(found[row], found[run], found[empty], strict=True)
    shares = [ours.rate * (1 / bare.rate + 1 / call.rate) for ours, bare, call in rows]
    least = [call.rate / bare.rate for bare, call in zip(found[run], found[empty], strict=True)]
    print(
        f"- {row}: {statistics.median(shares):.2f} of what these two, one after the other, would leave, ",
        end="",
    )
    print(f"which is {statistics.median(1 / (1 + ratio) for ratio in least):.2f} x {empty}")


def _print_wait(row: str, run: str, empty: str, found: Mapping[str, list[Load]]) -> None:
    """How much longer a caller waits than a run takes, and than that and an empty call."""
    alone = [ours.p50 - bare.p50 for ours, bare in zip(found[row], found[run], strict=True)]
    over = [more - call.p50 for more, call in zip(alone, found[empty], strict=True)]
    print(f"- {row}: p50 {statistics.median(alone):.2f} ms over {run}; ", end="")
    print(f"{statistics.median(over):.2f} ms over that and {empty}")


def _row(server: Server, callers: int) -> str:
    return f"{server.name}, {callers} caller{'s' if callers > 1 else ''}"


async def _best_of(other: str, version: Path, seconds: float) -> Server:
    """The fastest of a server's settings at 64 callers; all of them are printed."""
    tried = []
    for server in variants(other, version / "forward.onnx", _images(version, 1)):
        seen = (await measure(server, (64,), seconds))[64]
        tried.append((seen.rate, server))
        print(f"tried {server.name}: {seen.rate:.1f} images/s, p50 {seen.p50:.1f} ms", flush=True)
    return max(tried, key=lambda found: found[0])[1]


def _ours(version: Path, images: int, *flags: str) -> Server:
    """`glowserve serve` with its settings as they come, and flags."""
    request = pb.ScoreRequest(images=images_message(_images(version, images)))
    command = (sys.executable, "-m", "glowserve", "serve", "--repository", str(version.parent.parent))
    return Server(
        " ".join(("glowserve serve", *flags)),
        (*command, "--metrics-port", str(free_port()), *flags),
        Request(request.SerializeToString(), "/glowserve.v1.GlowService/Score"),
    )


def _echo(version: Path, images: int) -> Server:
    request = _ours(version, images).request
    return Server("empty gRPC server", (sys.executable, str(SERVERS / "echo_server.py")), request)


def _asleep(echo: Server, milliseconds: float) -> Server:
    """An empty server that sleeps as long as a run takes. A core that has had nothing to do is slow to begin again."""
    name = f"{echo.name} that sleeps {milliseconds:.1f} ms"
    return replace(echo, name=name, command=(*echo.command, "--wait-ms", f"{milliseconds:.3f}"))


def _images(version: Path, n: int) -> np.ndarray:
    size = _MODELS[version.parent.name]
    shape = (n, size["image_size"], size["image_size"], size["channels"])
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def _model(name: str) -> Path:
    """The bundle of a model, MODEL/VERSION/, that has seen a few batches of random images."""
    folder = OUT / "models" / name
    if not (folder / name / "1").exists():
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            pool.apply(_export, (name, folder))
    return (folder / name / "1").absolute()


def _export(name: str, folder: Path) -> None:
    from glowserve_export.bundle import export
    from glowserve_export.source import load_glowserve_checkpoint
    from glowserve_training.hardware import Hardware
    from glowserve_training.presets import run_config
    from glowserve_training.run import train

    size = _MODELS[name]
    shape = (400, size["image_size"], size["image_size"], size["channels"])
    folder.mkdir(parents=True, exist_ok=True)
    images = folder / "images.npz"
    np.savez(images, images=np.random.default_rng(0).integers(0, 256, shape, np.uint8))
    config = run_config(str(images), **size, steps=2, batch_size=16, learning_rate=1e-4)
    checkpoint = train(config, folder / "run", hardware=Hardware(device="cpu"))
    export(load_glowserve_checkpoint(checkpoint), folder / name)


def _bare_settings(device: str) -> list[tuple[int, int, int]]:
    """Images in a run, runs side by side, and threads in each."""
    if device == "cuda":
        return [(batch, 1, 1) for batch in _BATCHES]
    return [(batch, n, _CORES // n) for batch in _BATCHES for n in sorted({1, _CORES})]


def _bare(version: Path, setting: tuple[int, int, int], seconds: float, device: str) -> Load:
    """Images per second, and milliseconds of a run, in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return Load(*pool.apply(_run_bare, (version, *setting, seconds, device)))


def _run_bare(
    version: Path, batch: int, runs: int, threads: int, seconds: float, device: str
) -> tuple[float, float, float]:
    images = _images(version, batch)
    run = _run(version, threads, device, images, np.full(images.shape, 0.5, np.float32))
    begin = time.perf_counter() + min(1.0, seconds)
    runs_took = list[tuple[float, float]]()

    def keep_running() -> None:
        done = time.perf_counter()
        while done < begin + seconds or len(runs_took) < 4 * runs:
            began = done
            run()
            done = time.perf_counter()
            if done >= begin:
                runs_took.append((done, done - began))

    threads_running = [threading.Thread(target=keep_running) for _ in range(runs)]
    for thread in threads_running:
        thread.start()
    for thread in threads_running:
        thread.join()
    ends, took = np.array(sorted(runs_took)).T
    p50, p99 = 1000 * np.quantile(took, (0.5, 0.99))
    return batch * rate(ends), float(p50), float(p99)


def _run(
    version: Path, threads: int, device: str, images: np.ndarray, noise: np.ndarray
) -> Callable[[], Any]:
    """A run of the graph: on a GPU as the service does it, or it would wait for each of a thousand launches."""
    if device == "cuda":
        from glowserve.runtime.engine import Engine
        from glowserve.runtime.repository import open_bundle

        engine = Engine(open_bundle(version), RuntimeConfig(device=device, batch_sizes=(len(images),)))
        return lambda: engine.forward(images, noise)
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    graph = version / "forward.onnx"
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"image": images, "noise": noise})


async def _print_stages(server: Server, seconds: float) -> None:
    """Where a call's time goes, by the service's own metrics."""
    print(
        f"\nA call of {server.name}, milliseconds in the mean, as its metrics have it; processor: all threads.\n"
    )
    metrics_port = server.command[server.command.index("--metrics-port") + 1]
    stages = ("preparation", "queue", "execution", "serialization", "request_duration")
    print(f"| callers | {' | '.join(stages)} | processor |\n|---|{'---:|' * (len(stages) + 1)}")
    async with running(server) as port:
        for callers in _CALLERS:
            async with connected(port, server.request, callers) as calls:
                await load(calls, 0.2)
                before = _metrics(metrics_port)
                await load(calls, seconds)
                spent = {name: value - before[name] for name, value in _metrics(metrics_port).items()}
            means = []
            for stage in stages:
                total, count = (spent[f"glowserve_{stage}_seconds_{end}"] for end in ("sum", "count"))
                means.append(total / count)
            means.append(
                spent["process_cpu_seconds_total"] / spent["glowserve_request_duration_seconds_count"]
            )
            print(f"| {callers} | {' | '.join(f'{1000 * mean:.3f}' for mean in means)} |")


def _metrics(port: str) -> dict[str, float]:
    """The values by name, added up over their labels."""
    found: defaultdict[str, float] = defaultdict(float)
    with urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        for family in text_string_to_metric_families(answer.read().decode()):
            for sample in family.samples:
                if math.isfinite(sample.value):
                    found[sample.name] += sample.value
    return found


if __name__ == "__main__":
    main()
