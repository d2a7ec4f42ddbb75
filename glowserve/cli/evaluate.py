"""`glowserve evaluate`."""

from __future__ import annotations

import argparse
import json
import math
import sys
import zipfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glowserve.cli import against
from glowserve.cli.failure import Failure
from glowserve.cli.torch_device import torch_device
from glowserve.output import counted, printable

if TYPE_CHECKING:
    from glowserve_training.data import HeldOutImages
    from glowserve_training.evaluation import Evaluated, Evaluation

    from glowserve.images import UInt8Array


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument(
        "source",
        type=Path,
        metavar="CHECKPOINT_OR_BUNDLE",
        help="model.ckpt of `glowserve train`, REPOSITORY/MODEL/VERSION, or REPOSITORY/MODEL for its newest version",
    )
    parser.add_argument("--data", help="data to take held-out images from (default: the training data)")
    parser.add_argument(
        "--split",
        default="test",
        choices=["test", "validation", "calibration"],
        help="which held-out images to measure (default: test)",
    )
    parser.add_argument(
        "--images",
        type=int,
        metavar="N",
        help="measure the first N images (default: all); with --against also N of each set (default: 1,000)",
    )
    parser.add_argument(
        "--importance-samples",
        type=int,
        default=1,
        metavar="M",
        help="draws of dequantization noise for each image; more take longer and tighten the bound on the likelihood "
        "(default: 1)",
    )
    against.add_arguments(parser)
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"], help="(default: auto)")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(args: argparse.Namespace) -> int:
    """Measures a checkpoint or a bundle. The exit code is 1 if a likelihood is not finite."""
    from glowserve_training.errors import TrainingError
    from glowserve_training.evaluation import evaluate
    from glowserve_training.hardware import use_allowed_cores

    for name in ("images", "importance_samples"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise Failure(f"{name.replace('_', '-')} is {value}; it must be 1 or more", 2)
    use_allowed_cores()
    if args.against:
        return against.run(args, lambda images, data: _first(images, args.images, data, args.split))
    if args.plots:
        raise Failure("--plots draws the results of --against; give both, or none", 2)
    try:
        model, data, held_out = _open(args.source, args.device, args.data)
        images = _first(getattr(held_out, args.split), args.images, data, args.split)
    except (TrainingError, ValueError, OSError) as error:
        raise Failure(error, 2) from error
    evaluation = evaluate(model, images, importance_samples=args.importance_samples)
    if args.json:
        named = {"source": str(args.source), "data": data, "split": args.split}
        print(json.dumps(_without_infinity(named | asdict(evaluation))))
    else:
        measured = counted(evaluation.images, f"{args.split} image")
        print(printable(f"{args.source} on {measured} of {data}"))
        print()
        print(_table(evaluation))
    if evaluation.non_finite:
        print(
            f"glowserve: {evaluation.non_finite} of {evaluation.images} images have no finite likelihood: the model "
            "diverges on them; train longer, or with a lower --learning-rate",
            file=sys.stderr,
        )
    return 1 if evaluation.non_finite else 0


def _open(source: Path, device: str, data: str | None) -> tuple[Evaluated, str, HeldOutImages]:
    """The model, the data to measure it on, and the images of that."""
    from glowserve.runtime.repository import has_bundle

    if source.is_file() and (source.suffix == ".ckpt" or zipfile.is_zipfile(source)):
        return _open_checkpoint(source, device, data)
    if has_bundle(source):
        return _open_bundle(source, device, data)
    what = "is neither a checkpoint nor a bundle" if source.exists() else "does not exist"
    raise Failure(
        f"{source} {what}; give RUN_DIR/model.ckpt, which `glowserve train` writes, or REPOSITORY/MODEL or "
        "REPOSITORY/MODEL/VERSION, which `glowserve export` writes",
        2,
    )


def _open_checkpoint(source: Path, device: str, data: str | None) -> tuple[Evaluated, str, HeldOutImages]:
    from glowserve_training.checkpoint import load_checkpoint
    from glowserve_training.evaluation import EvaluatedGlow
    from glowserve_training.held_out import held_out_of

    checkpoint = load_checkpoint(source)
    model = checkpoint.model.to(torch_device(device))
    images = held_out_of(checkpoint, source).load(data, _warn)
    return EvaluatedGlow(model), data or checkpoint.data.data, images


def _open_bundle(source: Path, device: str, data: str | None) -> tuple[Evaluated, str, HeldOutImages]:
    from glowserve_export.errors import ExportError
    from glowserve_export.evaluation import EvaluatedBundle
    from glowserve_export.held_out import held_out_of_bundle

    from glowserve.runtime.errors import GlowserveError
    from glowserve.runtime.repository import newest_bundle

    try:
        bundle = newest_bundle(source)
        model = EvaluatedBundle(bundle, device=device)
        return model, *held_out_of_bundle(bundle, model, data, _warn)
    except (ExportError, GlowserveError) as error:
        raise Failure(error, 2) from error


def _warn(text: str) -> None:
    print(f"glowserve: {text}", file=sys.stderr)


def _first(images: UInt8Array, n: int | None, data: str, split: str) -> UInt8Array:
    """The first n images of a split, uint8 [N, H, W, C]."""
    if not len(images):
        raise Failure(
            f"no {split} images of data {data!r} were held out, as in runs of version 0.1.0; give --split validation",
            2,
        )
    if n is not None and n > len(images):
        raise Failure(
            f"images is {n}, and data {data!r} has {counted(len(images), f'{split} image')}; give at most "
            f"{len(images)}, or leave --images out",
            2,
        )
    return images[:n]


def _table(evaluation: Evaluation) -> str:
    """The results as lines of text."""
    trip, images = evaluation.round_trip, counted(evaluation.images, "image")
    changed = counted(trip.values_changed, "value")
    figures = {
        "bits/dim": f"{evaluation.bits_per_dim:.4f}",
        "standard error": f"{evaluation.standard_error:.4f}",
        "noise": f"{counted(evaluation.importance_samples, 'draw')} for each image",
        "not finite": f"{evaluation.non_finite} of {images}",
        "round trip": f"{trip.images_exact} of {images} exact, {changed} changed",
        "largest error": f"{trip.largest_error:.2g} bins; 0.5 changes a value",
    }
    lines = [f"{name:<16}{text}" for name, text in figures.items()]
    lines += ["", f"{'bits/dim':<16}{'log prior':>10}{'log det':>10}"]
    for level in evaluation.levels:
        lines.append(
            f"{f'level {level.level}':<16}{level.log_prior_bits_per_dim:>10.4f}{level.log_det_bits_per_dim:>10.4f}"
        )
    lines.append(f"{'constant':<26}{evaluation.constant_bits_per_dim:>10.4f}")
    lines.append(f"{'sum, first draw':<26}{evaluation.first_draw_bits_per_dim():>10.4f}")
    return "\n".join(lines)


def _without_infinity(value: Any) -> Any:
    """Replaces infinity and NaN, which JSON does not have, by None."""
    if isinstance(value, dict):
        return {key: _without_infinity(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_infinity(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
