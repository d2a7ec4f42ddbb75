"""What each choice of the training recipe is worth: one change at a time, with equal steps, on MNIST.

    python tests/benchmarks/ablate.py --data DATA --out out/ablation

Runs stay in --out, so that an interrupted table resumes.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

# K=4, L=2, width 64: small enough for ten minutes a row.
_SIZE = ("--levels", "2", "--steps-per-level", "4", "--width", "64", "--batch-size", "32")
_BASE = {
    "--coupling-actnorm": None,
    "--average-decay": "0.999",
    "--schedule": "cosine",
    "--learning-rate": "4e-3",
}
_CHANGES: dict[str, dict[str, str | None]] = {
    "all choices of the recipe": {},
    "no actnorm in the coupling networks": {"--no-coupling-actnorm": None},
    "no EMA of the weights": {"--average-decay": "0"},
    "constant learning rate": {"--schedule": "constant"},
    "weight decay 0.01": {"--weight-decay": "0.01"},
    "learning rate 1e-3": {"--learning-rate": "1e-3"},
    "learning rate 2e-3": {"--learning-rate": "2e-3"},
    "orthogonal 1x1 convolutions": {"--parametrization": "orthogonal"},
    "plain 1x1 convolutions": {"--parametrization": "plain"},
    "variational dequantization": {"--dequantization": "variational"},
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="ylecun/mnist")
    parser.add_argument("--out", type=Path, default=Path("out/ablation"))
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--only", type=int, nargs="*", help="numbers of the rows to train, from 0")
    args = parser.parse_args()
    rows = list(_CHANGES.items())
    chosen = [rows[i] for i in args.only] if args.only else rows
    for name, changes in chosen:
        _train(args, name, changes)
    print(
        f"{args.steps} steps of 32 images of {Path(args.data).name}; bits/dim with one draw of noise for each image"
    )
    print(f"{'':<40}{'validation':>12}{'test':>9}")
    for name, _ in chosen:
        validation, test = _figures(_run_dir(args.out, name) / "model.ckpt")
        print(f"{name:<40}{validation:>12.4f}{test:>9.4f}")


def _train(args: argparse.Namespace, name: str, changes: dict[str, str | None]) -> None:
    flags = [
        word
        for flag, value in (_BASE | changes).items()
        for word in ((flag,) if value is None else (flag, value))
    ]
    command = [sys.executable, "-m", "glowserve", "train", "--data", args.data, "--steps", str(args.steps)]
    command += ["--out", str(_run_dir(args.out, name)), *_SIZE, *flags]
    # One thread, so that two rows can run side by side on two cores.
    subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL)


def _run_dir(out: Path, name: str) -> Path:
    return out / name.replace(" ", "-").replace("'", "").replace(",", "")


def _figures(checkpoint: Path) -> tuple[float, float]:
    """Validation and test bits/dim."""
    from glowserve_training.checkpoint import load_checkpoint

    metrics = load_checkpoint(checkpoint).training.metrics
    return metrics["validation_bits_per_dim"], metrics["test_bits_per_dim"]


if __name__ == "__main__":
    main()
