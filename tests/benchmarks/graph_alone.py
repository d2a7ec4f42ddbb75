"""The forward graph in ONNX Runtime without a server, measured in a process of its own."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from load import Load, rate
from models import random_images

from glowserve.images import UInt8Array
from glowserve.runtime.config import RuntimeConfig

CORES = os.cpu_count() or 1
_BATCHES = (1, 8, 32)


@dataclass(frozen=True)
class Setting:
    """How the graph is run."""

    batch: int
    """Images in a run."""
    instances: int
    """Runs side by side."""
    threads: int
    """In each run."""

    def __str__(self) -> str:
        return f"batches of {self.batch}, {self.instances} x {self.threads} threads"


def settings(device: str) -> list[Setting]:
    """The settings that are tried on a device, "cpu" or "cuda"."""
    if device == "cuda":
        return [Setting(batch, 1, 1) for batch in _BATCHES]
    return [Setting(batch, n, CORES // n) for batch in _BATCHES for n in sorted({1, CORES})]


def measure_alone(version: Path, setting: Setting, seconds: float, device: str) -> Load:
    """Images per second, and how long a run takes.

    Args:
        version: a VERSION folder of `models`.
        setting: how the graph is run.
        seconds: how long the measurement takes, after a warm-up of as long, but a second at most.
        device: "cpu" or "cuda".
    """
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_measure, (version, setting, seconds, device))


def _measure(version: Path, setting: Setting, seconds: float, device: str) -> Load:
    images = random_images(version.parent.name, setting.batch)
    run = _runner(version, setting.threads, device, images)
    begin = time.perf_counter() + min(1.0, seconds)
    ended = list[tuple[float, float]]()

    def keep_running() -> None:
        now = time.perf_counter()
        while now < begin + seconds or len(ended) < 4 * setting.instances:
            began = now
            run()
            now = time.perf_counter()
            if now >= begin:
                ended.append((now, now - began))

    threads = [threading.Thread(target=keep_running) for _ in range(setting.instances)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ends, durations = np.array(sorted(ended)).T
    p50, p99 = 1000 * np.quantile(durations, (0.5, 0.99))
    return Load(setting.batch * rate(ends), float(p50), float(p99))


def _runner(version: Path, threads: int, device: str, images: UInt8Array) -> Callable[[], Any]:
    """Runs the graph once. On a GPU the service's engine does, which launches all kernels at once, as a CUDA graph."""
    noise = np.full(images.shape, 0.5, np.float32)
    if device == "cuda":
        from glowserve.runtime.engine import Engine
        from glowserve.runtime.repository import open_bundle

        engine = Engine(open_bundle(version), RuntimeConfig(device=device, batch_sizes=(len(images),)))
        return lambda: engine.forward(images, noise)
    from glowserve.runtime.ort import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    graph = version / "forward.onnx"
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"image": images, "noise": noise})
