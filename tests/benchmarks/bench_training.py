"""Speed and memory of training, beside a plain implementation; the parametrizations of the 1x1 convolution.

    python tests/benchmarks/bench_training.py speed
    python tests/benchmarks/bench_training.py speed --model paper --device cuda
    python tests/benchmarks/bench_training.py memory
    python tests/benchmarks/bench_training.py parametrizations --data DATA

Speed and memory are measured in processes of their own; compared cases take turns. Run it on an otherwise idle machine.
The runs of `parametrizations` stay in --out, so that an interrupted table resumes.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
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
# The defaults for photographs.
_PHOTOGRAPHS = {"preprocessing": "centre", "checkerboards": 0, "dequantization": "uniform"}
# The image sizes and levels of `parametrizations`, by C, the channels at the top level.
_TOP_LEVELS = {12: (32, 1), 48: (32, 3), 192: (32, 5), 384: (64, 6)}
_SMALL = {"steps_per_level": 4, "width": 32}
_TIMED_STEPS = 10


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["speed", "memory", "parametrizations", "one"])
    parser.add_argument("--model", choices=_MODELS, default="small", help="for speed")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="for speed")
    parser.add_argument("--data", default="uoft-cs/cifar10", help="images for the parametrizations")
    parser.add_argument("--steps", type=int, default=200, help="training steps for the parametrizations")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="for the parametrizations")
    parser.add_argument("--only", nargs="+", default=[], help="parametrizations beside plain; all by default")
    parser.add_argument("--out", type=Path, default=Path("out/parametrizations"), help="for their runs")
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
    return run_config("none", steps=10_000, batch_size=case["batch"], **sizes, **(_PHOTOGRAPHS | given))


def _random_images() -> Any:
    import numpy as np
    from glowserve_training.data import ImageData

    images = np.random.default_rng(0).integers(0, 256, (512, 32, 32, 3), dtype=np.uint8)
    return ImageData(train=images, validation=images[:8], test=images[:8])


def _parametrizations(args: argparse.Namespace) -> None:
    from glowserve_training.layers import CONV1X1_CLASSES

    print(
        "one 1x1 convolution, forward and backward, batch 32, with as many positions as the top level;\n"
        f"and a Glow whose top level has C channels (K=4 width=32), {args.steps} steps of {_BATCH} images of "
        f"{Path(args.data).name},\nseeds {' '.join(map(str, args.seeds))}: median of steps that take turns, mean "
        "validation bits/dim, worst condition number of W\n"
        f"  {'C':>3}  {'':<11}{'layer ms':>9}{'log-det ms':>12}{'step ms':>9}{'of plain':>10}"
        f"{'bits/dim':>10}{'- plain':>9}{'condition':>11}"
    )
    names = [name for name in CONV1X1_CLASSES if not args.only or name in ("plain", *args.only)]
    for channels, (size, levels) in _TOP_LEVELS.items():
        found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
        for seed, name in itertools.product(args.seeds, names):
            found[name].append(_trained(args, size, levels, name, seed))
        plain, steps = found["plain"], _time_steps(names, size, levels)
        for name, runs in found.items():
            layer_ms, log_det_ms = _time_conv1x1(name, channels, positions=size >> levels)
            step_ms = statistics.median(steps[name])
            ratio = statistics.median(
                own / base for own, base in zip(steps[name], steps["plain"], strict=True)
            )
            pairs = list(zip(runs, plain, strict=True))
            bits = statistics.mean(run["bits_per_dim"] for run in runs)
            difference = statistics.mean(run["bits_per_dim"] - base["bits_per_dim"] for run, base in pairs)
            condition = max(run["condition"] for run in runs)
            print(
                f"  {channels:>3}  {name:<11}{layer_ms:>9.2f}{log_det_ms:>12.3f}{step_ms:>9.1f}{ratio:>8.2f} x"
                f"{bits:>10.3f}{difference:>+9.3f}{condition:>11.2f}",
                flush=True,
            )


def _time_steps(names: Sequence[str], size: int, levels: int) -> dict[str, list[float]]:
    """Milliseconds of training steps, without validation and EMA, by parametrization; models take turns."""
    import torch
    from glowserve_training.model import Glow, GlowConfig

    images = torch.randint(0, 256, (_BATCH, size, size, 3), dtype=torch.uint8)
    noise = torch.rand(images.shape)

    def step(model: Glow, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        (-model.log_prob(images, noise).mean()).backward()
        optimizer.step()

    trained = {}
    for name in names:
        config = GlowConfig(image_size=size, channels=3, levels=levels, parametrization=name, **_SMALL)
        model = Glow(config).to(memory_format=torch.channels_last)
        trained[name] = model, torch.optim.AdamW(model.parameters())
    found: dict[str, list[float]] = {name: [] for name in names}
    for i in range(2 + _TIMED_STEPS):
        for name in names:
            began = time.perf_counter()
            step(*trained[name])
            if i >= 2:
                found[name].append(1000 * (time.perf_counter() - began))
    return found


def _time_conv1x1(name: str, channels: int, positions: int) -> tuple[float, float]:
    """Milliseconds of forward and backward pass: of a 1x1 convolution, and of its log-determinant alone."""
    import torch
    from glowserve_training.layers import CONV1X1_CLASSES

    layer = CONV1X1_CLASSES[name](channels)
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


def _trained(
    args: argparse.Namespace, size: int, levels: int, parametrization: str, seed: int
) -> dict[str, float]:
    """The figures of a run; trains it if it has none."""
    run_dir = args.out / f"{parametrization}-{size}-{levels}-{args.steps}-{seed}"
    figures = run_dir / "figures.json"
    if not figures.exists():
        found = _train(args, run_dir, size, levels, parametrization, seed)
        figures.write_text(json.dumps(found))
    return dict(json.loads(figures.read_text()))


def _train(
    args: argparse.Namespace, run_dir: Path, size: int, levels: int, parametrization: str, seed: int
) -> dict[str, float]:
    """Validation bits/dim, and the worst condition number of the trained model."""
    from glowserve_training.checkpoint import load_checkpoint
    from glowserve_training.presets import run_config
    from glowserve_training.run import train

    sizes = {"image_size": size, "channels": 3, "levels": levels, **_SMALL}
    # Condition numbers are measured here, not limited by the guard.
    config = run_config(
        args.data,
        parametrization=parametrization,
        condition_limit=math.inf,
        steps=args.steps,
        batch_size=_BATCH,
        seed=seed,
        **sizes,
        **_PHOTOGRAPHS,
    )
    checkpoint = load_checkpoint(train(config, run_dir))
    return {
        "bits_per_dim": checkpoint.training.metrics["validation_bits_per_dim"],
        "condition": max(max(level) for level in checkpoint.model.condition_numbers()),
    }


if __name__ == "__main__":
    main()
