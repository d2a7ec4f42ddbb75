"""What each choice of the training recipes is worth: one change at a time, with equal steps.

    python tests/benchmarks/ablate.py drawings --data MNIST --out out/ablation
    python tests/benchmarks/ablate.py photographs --data CIFAR-10 --seeds 0 1 2

The figures are bits/dim of validation images, with which choices are made, and of test images. Runs stay in --out, so
that an interrupted table resumes. Each run has one thread, so that two can run side by side on two cores (--jobs 2).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

Flags = Mapping[str, str | None]


@dataclass(frozen=True)
class Table:
    """A model, and what is changed in it."""

    base: Flags
    changes: Mapping[str, Flags]
    name: str = "the recipe"
    """Of the base."""


_COMMON: dict[str, Flags] = {
    "sigmoid scale": {"--coupling-scale": "sigmoid"},
    "additive couplings": {"--coupling": "additive"},
    "plain 1x1 convolutions": {"--parametrization": "plain"},
    "LU 1x1 convolutions": {"--parametrization": "lu"},
    "orthogonal 1x1 convolutions": {"--parametrization": "orthogonal"},
    "no actnorm in the networks": {"--no-coupling-actnorm": None},
    "no EMA of the weights": {"--average-decay": "0"},
    "constant learning rate": {"--schedule": "constant"},
    "half the learning rate": {"--learning-rate": "2e-3"},
    "1.5 times the learning rate": {"--learning-rate": "6e-3"},
    "weight decay 0.01": {"--weight-decay": "0.01"},
}
_TABLES = {
    "drawings": Table(
        {
            **{"--levels": "2", "--steps-per-level": "4", "--width": "64", "--batch-size": "32"},
            **{"--learning-rate": "4e-3", "--preprocessing": "logit", "--checkerboards": "4"},
            **{"--dequantization": "variational", "--coupling": "affine"},
        },
        {
            "spline couplings: the recipe": {"--coupling": "spline"},
            "centred pixels": {"--preprocessing": "centre"},
            "no checkerboards": {"--checkerboards": "0"},
            "2 checkerboards": {"--checkerboards": "2"},
            "uniform dequantization": {"--dequantization": "uniform"},
            **_COMMON,
        },
        "affine couplings",
    ),
    "photographs": Table(
        {
            **{"--levels": "3", "--steps-per-level": "4", "--width": "64", "--batch-size": "32"},
            **{"--learning-rate": "4e-3", "--preprocessing": "centre", "--checkerboards": "0"},
            **{"--dequantization": "uniform"},
        },
        {
            "logits of pixels": {"--preprocessing": "logit"},
            "2 checkerboards": {"--checkerboards": "2"},
            "variational dequantization": {"--dequantization": "variational"},
            "spline couplings": {"--coupling": "spline"},
            **_COMMON,
        },
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("table", choices=_TABLES)
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", type=Path, default=Path("out/ablation"))
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--only", type=int, nargs="*", help="numbers of the rows to train, from 0")
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side")
    args = parser.parse_args()
    table = _TABLES[args.table]
    rows = [(table.name, {}), *table.changes.items()]
    chosen = [rows[i] for i in args.only] if args.only else rows
    with ThreadPoolExecutor(args.jobs) as pool:
        runs = [
            pool.submit(_train, args, name, {**table.base, **changes}, seed)
            for name, changes in chosen
            for seed in args.seeds
        ]
        for run in runs:
            run.result()
    print(
        f"{args.steps} steps of 32 images of {Path(args.data).name}, seeds {' '.join(map(str, args.seeds))}"
    )
    print(f"{'':<30}{'validation':>12}{'test':>8}{'+- of seeds':>13}{'CPU minutes':>13}")
    for name, _ in chosen:
        figures = np.array([_figures(_run_dir(args, name, seed)) for seed in args.seeds])
        validation, test, minutes = figures.mean(0)
        spread = f"{figures[:, 0].std(ddof=1):.4f}" if len(figures) > 1 else "-"
        print(f"{name:<30}{validation:>12.4f}{test:>8.4f}{spread:>13}{minutes:>13.1f}")


def _train(args: argparse.Namespace, name: str, flags: Flags, seed: int) -> None:
    out = _run_dir(args, name, seed)
    if (out / "minutes.json").exists():
        return
    words = [word for flag, value in flags.items() for word in ((flag,) if value is None else (flag, value))]
    command = [sys.executable, "-m", "glowserve", "train", "--data", args.data, "--steps", str(args.steps)]
    command += ["--out", str(out), "--seed", str(seed), *words]
    before, environment = time.monotonic(), os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(
            f"{' '.join(command)}: exit code {process.returncode} after {time.monotonic() - before:.0f} s"
        )
    (out / "minutes.json").write_text(json.dumps((usage.ru_utime + usage.ru_stime) / 60))


def _run_dir(args: argparse.Namespace, name: str, seed: int) -> Path:
    folder: Path = args.out / args.table / f"{name.replace(' ', '-')}-{seed}"
    return folder


def _figures(run_dir: Path) -> tuple[float, float, float]:
    """Validation and test bits/dim, and CPU minutes."""
    from glowserve_training.checkpoint import load_checkpoint

    metrics = load_checkpoint(run_dir / "model.ckpt").training.metrics
    minutes = json.loads((run_dir / "minutes.json").read_text())
    return metrics["validation_bits_per_dim"], metrics["test_bits_per_dim"], minutes


if __name__ == "__main__":
    main()
