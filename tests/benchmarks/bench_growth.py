"""How time and memory of the service grow with callers, images, models, image sides, steps and pictures.

    python tests/benchmarks/bench_growth.py
    python tests/benchmarks/bench_growth.py --only callers,images --seconds 0.3    # whether it works

Each table ends with the exponent of each cost in the upper half of the table, and that of the work: a cost with a
larger exponent grows faster than its work. The first run trains and exports the models into out/bench/. Processor time
and memory are those of all processes of the service, without its callers. For quiet machines; Linux.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import os
import platform
import tempfile
import time
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any
from urllib.request import urlopen

import numpy as np
from curves import Column, Table
from load import Load, Request, connected, load
from models import SIDES, STEPS, bundle, random_images
from PIL import Image
from running import (
    Server,
    forget_peak,
    memory_mb,
    processor_seconds,
    running,
    server_process,
)
from services import glowserve_serve, metrics_port, score_request, serve

from glowserve.v1 import glow_service_pb2 as pb

_CALLERS = (1, 4, 16, 64, 128, 256, 512)
_IMAGES = (1, 4, 16, 64, 256)
_MODELS = (1, 2, 4, 8, 16, 32)
_SIDE, _KILOBYTES = 32, (100, 300, 1000, 3000, 5000)
_IDLE_SECONDS = 3.0
_LIST_MODELS = Request(pb.ListModelsRequest().SerializeToString(), "/glowserve.v1.GlowService/ListModels")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", metavar="TABLE,...", help=f"of {', '.join(_TABLES)}")
    parser.add_argument("--seconds", type=float, default=1.0, help="of a measurement")
    args = parser.parse_args()
    names = args.only.split(",") if args.only else list(_TABLES)
    if unknown := set(names) - set(_TABLES):
        parser.error(f"--only: {', '.join(sorted(unknown))} is not one of {', '.join(_TABLES)}")
    cores, (before, *_) = len(os.sched_getaffinity(0)), os.getloadavg()
    print(
        f"{platform.processor() or platform.machine()}, {cores} cores, Python {platform.python_version()}, ",
        end="",
    )
    print(f"{before:.1f} processes at work before it began.\n")
    for name in names:
        asyncio.run(_TABLES[name](args.seconds)).print()


async def callers(seconds: float) -> Table:
    """Callers of the tiny model, with an image a call."""
    table = Table(
        "Callers",
        "callers",
        (Column("calls/s", 0), Column("p50 ms", 1), Column("processor ms a call", 0), Column("peak MB", 0)),
        "The tiny model, an image a call, one connection.",
    )
    service = glowserve_serve(bundle("tiny"), 1)
    async with running(service) as port:
        for count in _CALLERS:
            found, peak = await _calls(port, service.request, seconds, callers=count)
            table.rows[count] = found.rate, found.p50, found.processor_ms, peak
    return table


async def images(seconds: float) -> Table:
    """Images of a call to the tiny model."""
    table = Table(
        "Images a call",
        "images",
        (Column("p50 ms", 1), Column("processor ms a call", 1), Column("peak MB", 0)),
        "The tiny model, one caller. A batch has at most 32 images.",
    )
    async with running(glowserve_serve(bundle("tiny"), 1)) as port:
        for count in _IMAGES:
            request = score_request(random_images("tiny", count))
            found, peak = await _calls(port, request, seconds)
            table.rows[count] = found.p50, found.processor_ms, peak
    return table


async def models(seconds: float) -> Table:
    """Models of a service."""
    columns = ("start s", "MB", "idle processor ms a second", "ListModels ms", "scrape ms", "scrape kB")
    table = Table(
        "Models",
        "models",
        [Column(name, 1) for name in columns],
        "Copies of the tiny model. The repository is polled, and each canary is checked, once a second: ten and thirty "
        "times as often as by default.",
    )
    for count in _MODELS:
        with tempfile.TemporaryDirectory() as folder:
            request = _link(Path(folder), count)
            service = serve(Path(folder), request, "--poll-seconds", "1", "--canary-seconds", "1")
            began = time.monotonic()
            async with running(service) as port:
                start = time.monotonic() - began
                table.rows[count] = start, *await _idle(service), *await _looks(service, port, seconds)
    return table


def _link(repository: Path, count: int) -> Request:
    """Makes a repository of so many links to the tiny model, and a request for the first."""
    for i in range(count):
        (repository / f"tiny-{i:02}").mkdir()
        (repository / f"tiny-{i:02}" / "1").symlink_to(bundle("tiny"))
    return score_request(random_images("tiny", 1), model="tiny-00")


async def _idle(service: Server) -> tuple[float, float]:
    """The memory in MB, and the processor time of a second without calls, in milliseconds."""
    process = server_process()
    before, began = processor_seconds(process), time.monotonic()
    await asyncio.sleep(_IDLE_SECONDS)
    spent = processor_seconds(process) - before
    return memory_mb(process, peak=False), 1000 * spent / (time.monotonic() - began)


async def _looks(service: Server, port: int, seconds: float) -> tuple[float, float, float]:
    """How long ListModels and a scrape take, in milliseconds, and how long the answer to a scrape is, in kB."""
    found, _ = await _calls(port, _LIST_MODELS, seconds / 2)
    times, url = list[float](), f"http://127.0.0.1:{metrics_port(service)}/metrics"
    for _ in range(5):
        began = time.perf_counter()
        text = await asyncio.to_thread(lambda: urlopen(url).read())
        times.append(1000 * (time.perf_counter() - began))
    return found.p50, median(times), len(text) / 1000


async def sides(seconds: float) -> Table:
    """Sides of a model's images."""
    return await _sizes(
        "Image side",
        "side",
        "K=4 L=2 width 32, images in colour.",
        {side: f"side-{side}" for side in SIDES},
        2,
        seconds,
    )


async def steps(seconds: float) -> Table:
    """Steps of each level of a model."""
    names = {count: f"steps-{count}" for count in STEPS}
    return await _sizes("Steps", "K", "16x16x3, L=2 width 64.", names, 1, seconds)


async def _sizes(
    name: str, amount: str, note: str, models: dict[int, str], work: float, seconds: float
) -> Table:
    """Models of several sizes, each served alone, by amount."""
    columns = (
        Column("start s", work),
        Column("p50 ms", work),
        Column("processor ms a call", work),
        Column("MB after the start", work),
        Column("peak MB", work),
    )
    table = Table(name, amount, columns, f"{note} One caller, an image a call.")
    for size, model in models.items():
        service, began = glowserve_serve(bundle(model), 1), time.monotonic()
        async with running(service) as port:
            start, memory = time.monotonic() - began, memory_mb(server_process(), peak=False)
            peak = memory_mb(server_process(), peak=True)
            found, _ = await _calls(port, service.request, seconds)
            table.rows[size] = start, found.p50, found.processor_ms, memory, peak
    return table


async def jpeg(seconds: float) -> Table:
    """Bytes of a picture in JPEG."""
    return await _pictures("JPEG", seconds)


async def png(seconds: float) -> Table:
    """Bytes of a picture in PNG."""
    return await _pictures("PNG", seconds)


async def _pictures(kind: str, seconds: float) -> Table:
    """Bytes of a picture of some format."""
    names = ("megapixels", "p50 ms", "processor ms a call", "peak MB")
    table = Table(f"Bytes of a {kind}", "kB", [Column(name, 1) for name in names], "")
    raw = glowserve_serve(bundle(f"side-{_SIDE}"), 1)
    async with running(raw) as port:
        found, _ = await _calls(port, raw.request, seconds)
        table.note = (
            f"The model of {_SIDE}x{_SIDE} images in colour, one caller, a picture a call, which is resized. A raw "
            f"tensor takes {found.p50:.2f} ms, {found.processor_ms:.2f} ms of processor time."
        )
        for kilobytes in _KILOBYTES:
            megapixels, file = _picture(kind, 1000 * kilobytes)
            found, peak = await _calls(port, score_request([file]), seconds)
            table.rows[kilobytes] = megapixels, found.p50, found.processor_ms, peak
    return table


def _picture(kind: str, size: int) -> tuple[float, bytes]:
    """The megapixels and the file of a picture of roughly so many bytes, about as hard to compress as a photograph."""
    side = 512
    for _ in range(2):  # the second one has the side that follows from the first one's bytes
        data = io.BytesIO()
        _photograph(side).save(data, kind, **({"quality": 90} if kind == "JPEG" else {}))
        pixels, side = side * side, int(side * (size / len(data.getvalue())) ** 0.5)
    return pixels / 1e6, data.getvalue()


def _photograph(side: int) -> Image.Image:
    rng = np.random.default_rng(0)
    rough = Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8))
    smooth = np.asarray(rough.resize((side, side), Image.Resampling.BICUBIC), np.int16)
    grain = rng.integers(-10, 11, (side, side, 3), np.int16)
    return Image.fromarray(np.clip(smooth + grain, 0, 255).astype(np.uint8))


async def _calls(port: int, request: Request, seconds: float, *, callers: int = 1) -> tuple[Load, float]:
    """What callers measure of a service, with the processor time of a call, and the peak of its memory, in MB."""
    process = server_process()
    async with connected(port, request, callers) as calls:
        forget_peak(process)
        before = processor_seconds(process)
        found = await load(calls, seconds)
        spent = processor_seconds(process) - before
    return replace(found, processor_ms=1000 * spent / found.calls), memory_mb(process, peak=True)


_TABLES: dict[str, Callable[[float], Coroutine[Any, Any, Table]]] = {
    each.__name__: each for each in (callers, images, models, sides, steps, jpeg, png)
}


if __name__ == "__main__":
    main()
