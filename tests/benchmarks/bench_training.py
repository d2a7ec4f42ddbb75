"""Speed and memory of training, beside a plain implementation; the parametrizations of the 1x1 convolution.

    python tests/benchmarks/bench_training.py speed
    python tests/benchmarks/bench_training.py speed --model paper --device cuda
    python tests/benchmarks/bench_training.py memory
    python tests/benchmarks/bench_training.py parametrizations --data DATA

Each figure is measured in a process of its own; compared cases take turns. Run it on an otherwise idle machine.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

_ROUNDS, _WARMUP, _STEPS = 5, 4, 20
_BATCH = 32
# K, width and batch size of the models of `speed`.
_MODELS = {"small": (8, 128, _BATCH), "paper": (32, 512, 64)}
# By name: options of the training. "plain" is plain_glow.py, "ours" this project.
_SPEED: dict[str, dict[str, Any]] = {
    "plain implementation": {},
    "ours": {},
    "plain, no coupling actnorm": {"coupling_actnorm": False},
    "ours, no coupling actnorm": {"coupling_actnorm": False},
    "ours --checkpoint-activations": {"checkpoint_activations": True},
    "ours --precision bf16-mixed": {"precision": "bf16-mixed"},
    "ours --dequantization variational": {"dequantization": "variational"},
    "ours --compile": {"compile": True},
}
# The other options are fields of GlowConfig and RunConfig.
_HARDWARE = ("checkpoint_activations", "compile")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["speed", "memory", "parametrizations", "one"])
    parser.add_argument("--model", choices=_MODELS, default="small", help="for speed")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="for speed")
    parser.add_argument("--data", default="uoft-cs/cifar10", help="images for the parametrizations")
    parser.add_argument("--steps", type=int, default=200, help="training steps for the parametrizations")
    parser.add_argument("--case", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.what == "one":
        print(json.dumps(_measure(args.case)))
        return
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    )
    {"speed": _speed, "memory": _memory, "parametrizations": _parametrizations}[args.what](args)


def _speed(args: argparse.Namespace) -> None:
    k, width, batch = _MODELS[args.model]
    print(
        f"images per second in training on {args.device}, 32x32x3, K={k} L=3 width={width}, batch {batch}; medians of "
        "rounds that take turns"
    )
    model = {"k": k, "width": width, "batch": batch, "device": args.device}
    cases = {name: model | {"name": name, "options": options} for name, options in _SPEED.items()}
    found: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(_ROUNDS):
        for name, case in cases.items():
            found[name].append(_in_process(case)["images_per_second"])
    for name, values in found.items():
        same_network = name.endswith("no coupling actnorm")
        plain = found["plain, no coupling actnorm" if same_network else "plain implementation"]
        ratio = statistics.median(value / base for value, base in zip(values, plain, strict=True))
        print(f"  {name:<36}{statistics.median(values):>8.1f}{ratio:>7.2f} x")


def _memory(args: argparse.Namespace) -> None:
    print("peak memory of a training step minus the memory before it, 32x32x3, K=32 L=3 width=128, batch 32")
    options: dict[str, dict[str, Any]] = {
        "ours": {},
        "ours --checkpoint-activations": {"checkpoint_activations": True},
    }
    peaks = {}
    for name, chosen in options.items():
        case = {"name": name, "k": 32, "width": 128, "batch": _BATCH, "device": "cpu"}
        peaks[name] = _in_process(case | {"options": chosen, "steps": 2})["peak_mib"]
        print(f"  {name:<36}{peaks[name]:>8.0f} MiB{peaks[name] / peaks['ours']:>7.2f} x")


def _in_process(case: dict[str, Any]) -> dict[str, float]:
    command = [sys.executable, __file__, "one", "--case", json.dumps(case)]
    return dict(
        json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout.splitlines()[-1])
    )


def _measure(case: dict[str, Any]) -> dict[str, float]:
    """Images per second, and peak memory minus the memory before the first step, in MiB."""
    steps = case.get("steps", _STEPS)
    measure = _plain if case["name"].startswith("plain") else _ours
    before, starts = measure(case, case["options"], steps)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    seconds = [end - begin for begin, end in zip(starts[_WARMUP:], starts[_WARMUP + 1 :], strict=False)]
    return {"images_per_second": case["batch"] / statistics.median(seconds), "peak_mib": peak / 1024}


def _plain(case: dict[str, Any], options: dict[str, Any], steps: int) -> tuple[int, list[float]]:
    """Memory before the first step in KiB, and the start time of each step and of the one after the last."""
    import torch
    from plain_glow import PlainGlow, plain_step

    torch.manual_seed(0)
    torch.set_default_device(case["device"])
    actnorm = options.get("coupling_actnorm", True)
    model = PlainGlow(32, 3, 3, case["k"], case["width"], actnorm=actnorm)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    images = torch.randint(0, 256, (case["batch"], 32, 32, 3), dtype=torch.uint8)
    before, starts = 0, []
    for step in range(_WARMUP + steps + 1):
        if step == 0:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        starts.append(time.perf_counter())
        plain_step(model, optimizer, images, torch.rand(images.shape))  # waits for the loss
    return before, starts


def _ours(case: dict[str, Any], options: dict[str, Any], steps: int) -> tuple[int, list[float]]:
    """The same for this project, through the trainer; interrupted before the guard's first check."""
    import torch
    from glowserve_training.fit import fit
    from glowserve_training.hardware import Hardware
    from glowserve_training.model import Glow
    from glowserve_training.module import GlowModule
    from lightning.pytorch.callbacks import Callback

    starts: list[float] = []
    before = []

    class Clock(Callback):
        def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
            if not before:
                before.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
            if case["device"] == "cuda":
                torch.cuda.synchronize()
            starts.append(time.perf_counter())
            if len(starts) > _WARMUP + steps:
                raise KeyboardInterrupt

    config = _run_config(case, {name: options[name] for name in options if name not in _HARDWARE})
    hardware = Hardware(
        device=case["device"], **{name: options[name] for name in options if name in _HARDWARE}
    )
    with tempfile.TemporaryDirectory() as folder, suppress(KeyboardInterrupt):
        fit(
            GlowModule(Glow(config.model), config),
            _random_images(),
            config,
            resume=Path(folder) / "resume" / "last.ckpt",
            logs=Path(folder) / "logs",
            hardware=hardware,
            callbacks=[Clock()],
        )
    return before[0], starts


def _run_config(case: dict[str, Any], given: dict[str, Any]) -> Any:
    from glowserve_training.presets import run_config

    sizes = {"image_size": 32, "channels": 3, "steps_per_level": case["k"], "width": case["width"]}
    return run_config("none", steps=10_000, batch_size=case["batch"], **sizes, **given)


def _random_images() -> Any:
    import numpy as np
    from glowserve_training.data import ImageData

    images = np.random.default_rng(0).integers(0, 256, (512, 32, 32, 3), dtype=np.uint8)
    return ImageData(train=images, validation=images[:8], test=images[:8])


def _parametrizations(args: argparse.Namespace) -> None:
    """For C = 12, 48 and 192, the channels at the top level of 1, 3 and 5 levels."""
    from glowserve_training.layers import CONV1X1_CLASSES

    print(
        "one 1x1 convolution, forward and backward, batch 32, with as many positions as that level of a 32x32 image;\n"
        f"and a Glow with that level at the top (K=4 width=32), {args.steps} steps of {_BATCH} images of "
        f"{Path(args.data).name}\n"
        f"  {'C':>3}  {'':<11}{'layer ms':>9}{'log-det ms':>12}{'step ms':>9}{'bits/dim':>10}{'worst condition':>17}"
    )
    for levels, channels in ((1, 12), (3, 48), (5, 192)):
        for name in CONV1X1_CLASSES:
            layer_ms, log_det_ms = _time_conv1x1(name, channels, positions=32 >> levels)
            trained = _train(args, levels, name)
            print(
                f"  {channels:>3}  {name:<11}{layer_ms:>9.2f}{log_det_ms:>12.3f}"
                f"{trained['step_ms']:>9.1f}{trained['bits_per_dim']:>10.3f}{trained['condition']:>17.2f}"
            )


def _time_conv1x1(name: str, channels: int, positions: int) -> tuple[float, float]:
    """Milliseconds of forward and backward pass: of a 1x1 convolution, and of its log-determinant alone."""
    import torch
    from glowserve_training.layers import invertible_conv1x1

    layer = invertible_conv1x1(channels, name)
    x = torch.randn(_BATCH, channels, positions, positions, requires_grad=True)

    def whole() -> None:
        y, log_det = layer(x)
        (y.sum() + log_det.sum()).backward()

    def log_det_alone() -> None:
        value = layer.log_abs_det()
        if value.requires_grad:
            value.backward()

    return _milliseconds(whole), _milliseconds(log_det_alone)


def _milliseconds(function: Callable[[], None], repeats: int = 30) -> float:
    for _ in range(3):
        function()
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - began)
    return 1000 * statistics.median(seconds)


def _train(args: argparse.Namespace, levels: int, parametrization: str) -> dict[str, float]:
    """Test bits/dim and worst condition number of the trained model, and the median milliseconds of a step."""
    from glowserve_training.checkpoint import load_checkpoint
    from glowserve_training.presets import run_config
    from glowserve_training.run import train
    from lightning.pytorch.callbacks import Callback

    starts: list[float] = []

    class Clock(Callback):
        def on_train_batch_start(self, *_: Any) -> None:
            starts.append(time.perf_counter())

    sizes = {"levels": levels, "steps_per_level": 4, "width": 32, "steps": args.steps, "batch_size": _BATCH}
    # Condition numbers are measured here, not limited by the guard.
    config = run_config(args.data, parametrization=parametrization, condition_limit=float("inf"), **sizes)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = load_checkpoint(train(config, Path(folder), callbacks=[Clock()]))
    steps = [end - begin for begin, end in itertools.pairwise(starts)]
    return {
        "bits_per_dim": checkpoint.training.metrics["test_bits_per_dim"],
        "condition": max(max(level) for level in checkpoint.model.condition_numbers()),
        "step_ms": 1000 * statistics.median(steps),
    }


if __name__ == "__main__":
    main()
