"""The multi-scale model of a tutorial (tutorial_model.py), the same with Glow's block, and ours: bits/dim on the way.

    python tests/benchmarks/bench_tutorial.py --data DATA --out out/tutorial
    python tests/benchmarks/bench_tutorial.py --data DATA --only 0 1 --images 16000 --minutes --seeds 0 1 2

All rows train on the same images, with one thread, and are measured on the same test images with the same noise. The
tutorial's models are measured on their way, whenever they pass a mark of --images or --minutes. Runs stay in --out: an
interrupted one resumes, and the tutorial's models go on to later marks. CPU minutes are those of training: of
`glowserve train` all of the process, of the tutorial's models the steps alone.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from glowserve.files import atomic_write

# Whether the tutorial's model has Glow's block; None for `glowserve train`, with flags.
_ROWS: dict[str, tuple[bool | None, tuple[str, ...]]] = {
    "the tutorial's multi-scale model": (False, ()),
    "the same with Glow's block": (True, ()),
    "glowserve train, 1,500 steps of 32 images": (None, ("--steps", "1500", "--batch-size", "32")),
    "glowserve train": (None, ()),
}
_IMPORTANCE_SAMPLES = 8
_SAVE_EVERY = 10  # steps


@dataclass(frozen=True)
class Figures:
    """What a run had reached."""

    parameters: int
    images_seen: int
    cpu_minutes: float
    test: float
    """Bits/dim of the test images with one draw of noise for each."""
    test_importance: float
    """With `_IMPORTANCE_SAMPLES` draws."""
    standard_error: float
    """Of `test_importance`."""


@dataclass
class Run:
    """A row with a seed. Its figures are in a file, once they are added."""

    folder: Path
    seed: int
    held_out: str
    """The digest of the images that the figures are of."""
    figures: list[Figures] = field(default_factory=list)
    cpu_seconds: float = 0.0
    """Of the processes of `glowserve train`."""

    def __post_init__(self) -> None:
        if self._file.exists():
            stored = json.loads(self._file.read_text())
            if stored["held_out"] != self.held_out:
                sys.exit(f"{self.folder} has a run on other images; give another folder with --out")
            self.figures = [Figures(**figures) for figures in stored["figures"]]
            self.cpu_seconds = stored["cpu_seconds"]
        else:
            self.folder.mkdir(parents=True)
            self.save()

    def add(self, figures: Figures) -> None:
        """Adds or replaces the figures of so many images."""
        others = [one for one in self.figures if one.images_seen != figures.images_seen]
        self.figures = sorted([*others, figures], key=lambda one: one.images_seen)
        self.save()

    def save(self) -> None:
        content = {"held_out": self.held_out, "cpu_seconds": self.cpu_seconds}
        with atomic_write(self._file) as file:
            file.write(json.dumps(content | {"figures": [asdict(one) for one in self.figures]}).encode())

    @property
    def _file(self) -> Path:
        return self.folder / "figures.json"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="ylecun/mnist")
    parser.add_argument("--out", type=Path, default=Path("out/tutorial"))
    parser.add_argument(
        "--images", type=int, nargs="*", default=[16_000, 48_000], help="marks in images seen"
    )
    parser.add_argument("--minutes", type=float, nargs="*", default=[7, 30, 52], help="marks in CPU minutes")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--only", type=int, nargs="*", help="numbers of the rows to train, from 0")
    args = parser.parse_args()

    import torch
    from glowserve_training.data import load_images
    from glowserve_training.presets import run_config

    torch.set_num_threads(1)
    config = run_config(args.data)  # what `glowserve train` trains with
    images = load_images(config.data)
    rows = list(_ROWS.items())
    found: list[tuple[str, Run]] = []
    for name, (glow_block, flags) in [rows[i] for i in args.only] if args.only else rows:
        for seed in args.seeds:
            run = Run(args.out / _slug(name) / f"seed-{seed}", seed, images.digest)
            if glow_block is None:
                _train_ours(run, args.data, flags, images)
            else:
                _train_tutorial(run, args, glow_block, config.model, images)
            found.append((name, run))
    _print(found, Path(args.data).name, len(images.test))


def _train_tutorial(run: Run, args: argparse.Namespace, glow_block: bool, shape: Any, images: Any) -> None:
    """Trains to the last mark.

    Args:
        run: where the figures go.
        args: has the marks.
        glow_block: whether the model has Glow's block.
        shape: the `GlowConfig` that has the images' shape.
        images: the `ImageData`.
    """
    from tutorial_training import TutorialTraining

    training = TutorialTraining(
        run.folder / "state.pt", images.train, n_bits=shape.n_bits, seed=run.seed, glow_block=glow_block
    )
    last_image, last_minute = max(args.images, default=0), max(args.minutes, default=0)
    while training.images_seen < last_image or training.cpu_minutes < last_minute:
        images_before, minutes_before = training.images_seen, training.cpu_minutes
        loss = training.step()
        passed = any(images_before < mark <= training.images_seen for mark in args.images)
        passed |= any(minutes_before < mark <= training.cpu_minutes for mark in args.minutes)
        if passed:
            model, seen = training.model, training.images_seen
            run.add(_measure(model, model, seen, training.cpu_minutes, images))
        # Afterwards, so that a run that is interrupted while it is measured passes the mark again.
        if passed or training.steps % _SAVE_EVERY == 0:
            training.save()
            reached = f"{training.images_seen:,} images, {training.cpu_minutes:.1f} CPU minutes"
            print(f"{run.folder}: {reached}, last batch {loss:.3f} bits/dim", file=sys.stderr, flush=True)


def _train_ours(run: Run, data: str, flags: tuple[str, ...], images: Any) -> None:
    """Trains to the end; arguments as in `_train_tutorial`."""
    from glowserve_training.checkpoint import load_checkpoint
    from glowserve_training.evaluation import EvaluatedGlow

    if run.figures:
        return
    out = run.folder / "run"
    command = [sys.executable, "-m", "glowserve", "train", "--data", data, "--out", str(out)]
    command += ["--seed", str(run.seed), *flags]
    before = _cpu_seconds_of_children()
    try:
        subprocess.run(
            command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL
        )
    finally:
        run.cpu_seconds += _cpu_seconds_of_children() - before
        run.save()
    checkpoint = load_checkpoint(out / "model.ckpt")
    seen = checkpoint.training.images_seen
    run.add(_measure(EvaluatedGlow(checkpoint.model), checkpoint.model, seen, run.cpu_seconds / 60, images))


def _cpu_seconds_of_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _measure(evaluated: Any, model: Any, images_seen: int, cpu_minutes: float, images: Any) -> Figures:
    from glowserve_training.evaluation import measure_likelihood

    likelihood = measure_likelihood(evaluated, images.test, importance_samples=_IMPORTANCE_SAMPLES)
    return Figures(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        images_seen=images_seen,
        cpu_minutes=cpu_minutes,
        test=likelihood.first_draw_bits_per_dim(),
        test_importance=likelihood.bits_per_dim,
        standard_error=likelihood.standard_error,
    )


def _print(found: list[tuple[str, Run]], data: str, n: int) -> None:
    print(
        f"bits/dim of {n:,} test images of {data}, with 1 and with {_IMPORTANCE_SAMPLES} draws of noise for each; "
        f"{platform.processor() or platform.machine()}, one thread"
    )
    columns = f"{'seed':>6}{'parameters':>12}{'images seen':>13}{'CPU minutes':>13}{'1 draw':>9}"
    print(f"{'':<42}{columns}{_IMPORTANCE_SAMPLES:>5} draws ± standard error")
    for name, run in found:
        for one in run.figures:
            print(
                f"{name:<42}{run.seed:>6}{one.parameters:>12,}{one.images_seen:>13,}{one.cpu_minutes:>13.1f}"
                f"{one.test:>9.3f}{one.test_importance:>11.3f} ± {one.standard_error:.3f}"
            )


def _slug(name: str) -> str:
    return "".join(letter for letter in name.replace(" ", "-") if letter.isalnum() or letter == "-")


if __name__ == "__main__":
    main()
