"""`glowserve export`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from glowserve.cli.failure import Failure
from glowserve.cli.torch_device import torch_device
from glowserve.output import printable
from glowserve.verification import verification_json, verification_table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="model.ckpt of `glowserve train`")
    parser.add_argument(
        "model", type=Path, metavar="REPOSITORY/MODEL", help="the bundle is written to its next VERSION"
    )
    parser.add_argument("--data", help="data to take held-out images from (default: the training data)")
    parser.add_argument(
        "--precision",
        default="fp32",
        choices=["fp32", "fp16", "int8"],
        help="precision of the coupling networks; the rest is always float32 (default: fp32)",
    )
    parser.add_argument(
        "--from",
        dest="implementation",
        choices=["rosinality", "y0ast", "chaiyujin", "normflows"],
        help="CHECKPOINT is of rosinality/glow-pytorch, y0ast/Glow-PyTorch, chaiyujin/glow-pytorch or normflows; "
        "requires --config and --data",
    )
    parser.add_argument(
        "--config",
        type=Path,
        help="with --from: JSON with what the checkpoint does not tell: image_size and n_bits for rosinality, the "
        "hparams of the training script for y0ast and chaiyujin, n_bits, scale_map and input_shape for normflows",
    )
    parser.add_argument(
        "--label-column",
        metavar="NAME",
        help="of a class-conditional model: the column of labels in --data (default: the only one)",
    )
    parser.add_argument(
        "--verification-images",
        type=int,
        metavar="N",
        help="held-out images to verify the graphs on (default: 128, or fewer if the model is large)",
    )
    parser.add_argument(
        "--device",
        default="auto",
        choices=["auto", "cpu", "cuda"],
        help="runs the verification (default: auto: CUDA if it works, else the CPU)",
    )
    parser.add_argument(
        "--triton", type=Path, metavar="DIR", help="also write the bundle to a Triton model repository"
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(args: argparse.Namespace) -> int:
    """Exports a checkpoint."""
    from glowserve_export.bundle import export
    from glowserve_export.errors import ExportError
    from glowserve_export.source import load_glowserve_checkpoint, load_public_checkpoint
    from glowserve_export.triton import write_triton
    from glowserve_training.errors import TrainingError
    from glowserve_training.hardware import use_allowed_cores

    from glowserve.runtime.errors import GlowserveError

    if (args.implementation is None) != (args.config is None):
        raise Failure(
            "--from and --config must be given together: a public implementation's checkpoint needs both", 2
        )
    use_allowed_cores()
    _say(f"reading {args.checkpoint}")
    try:
        how = {"precision": args.precision, "device": torch_device(args.device)}
        if args.implementation:
            source = load_public_checkpoint(args.implementation, args.checkpoint, args.config, **how)
        else:
            source = load_glowserve_checkpoint(args.checkpoint, **how)
        bundle = export(
            source,
            args.model,
            data=args.data,
            label_column=args.label_column,
            precision=args.precision,
            verification_images=args.verification_images,
            device=args.device,
            say=_say,
        )
        if args.triton:
            for path in write_triton(bundle, args.triton):
                _say(f"wrote {path}")
    except ExportError as error:
        raise Failure(error, 1) from error
    except (TrainingError, GlowserveError, OSError) as error:
        raise Failure(error, 2) from error
    manifest = bundle.manifest
    if args.json:
        print(
            json.dumps(
                {"bundle": str(bundle.path), "version": manifest.version} | verification_json(manifest)
            )
        )
    else:
        print(verification_table(manifest))
        print(printable(f"wrote {bundle.path}"))
        print(printable(f"next: glowserve serve --repository {args.model.parent}"))
    return 0


def _say(text: str) -> None:
    print(printable(text), file=sys.stderr)
