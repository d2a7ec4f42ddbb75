"""What spline couplings cost in training and in graphs, beside affine ones: models of drawings of 28x28 pixels.

    python tests/benchmarks/bench_splines.py

Weights are random. All run in one process, on one thread, and take turns, so that ratios hold on a busy machine, too;
the time is the thread's own. Figures are medians.
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from glowserve_export.folded import FoldedGlow
from glowserve_export.frontends.glowserve import fold_glow
from glowserve_export.graphs import forward_graph, reverse_graph
from glowserve_training.model import Glow, GlowConfig

from glowserve.runtime.ort import onnxruntime

_DRAWINGS = {"preprocessing": "logit", "checkerboards": 4, "dequantization": "variational"}
_MODELS: dict[str, dict[str, Any]] = {
    "K=8 width 96, affine": {"steps_per_level": 8, "width": 96},
    "K=4 width 64, spline": {"steps_per_level": 4, "width": 64, "coupling": "spline"},
    "K=4 width 64, affine": {"steps_per_level": 4, "width": 64},
}
_ROUNDS = 12


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    models = {name: _model(options) for name, options in _MODELS.items()}
    folded = {name: fold_glow(model) for name, model in models.items()}
    seconds = _medians({name: _step(model) for name, model in models.items()}, calls=1)
    print(f"{platform.processor() or platform.machine()}, Python {platform.python_version()}, one thread")
    print(f"{'':<32}" + "".join(f"{name:>24}" for name in _MODELS))
    _print("training step of 32 images, ms", [1000 * each for each in seconds])
    for direction in ("forward", "reverse"):
        for batch in (1, 32):
            runs = {name: _graph(glow, direction, batch) for name, glow in folded.items()}
            seconds = _medians(runs, calls=32 // batch)
            _print(f"{direction}, batch {batch}, images/s", [batch / each for each in seconds])


def _model(options: Mapping[str, Any]) -> Glow:
    model = Glow(GlowConfig(image_size=28, channels=1, levels=2, **_DRAWINGS, **options))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            small = name.endswith(("lower", "upper"))  # so that matrices stay well-conditioned
            weight.add_((0.02 if small else 0.05) * torch.randn(weight.shape))
    return model.eval()


def _step(model: Glow) -> Callable[[], Any]:
    """Forward and backward pass."""
    images = torch.randint(0, 256, (32, 28, 28, 1), dtype=torch.uint8)
    noise = torch.rand(images.shape)

    def run() -> None:
        model.zero_grad()
        (-model.log_prob(images, noise).mean()).backward()  # type: ignore[no-untyped-call]

    return run


def _graph(glow: FoldedGlow, direction: str, batch: int) -> Callable[[], Any]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    graph = (forward_graph if direction == "forward" else reverse_graph)(glow).SerializeToString()
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    inputs: dict[str, Any] = {"latent": rng.standard_normal((batch, 784)).astype(np.float32)}
    if direction == "forward":
        images = rng.integers(0, 256, (batch, 28, 28, 1), np.uint8)
        inputs = {"image": images, "noise": rng.random(images.shape, np.float32)}
    return lambda: session.run(None, inputs)


def _medians(runs: Mapping[str, Callable[[], Any]], calls: int) -> list[float]:
    """Seconds of a call of each; they take turns."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(_ROUNDS):
        for name, run in runs.items():
            before = time.thread_time()
            for _ in range(calls):
                run()
            times[name].append((time.thread_time() - before) / calls)
    return [statistics.median(each[1:]) for each in times.values()]


def _print(what: str, values: list[float]) -> None:
    print(f"{what:<32}" + "".join(f"{value:>24,.0f}" for value in values), flush=True)


if __name__ == "__main__":
    main()
