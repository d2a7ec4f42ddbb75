"""`glowserve export`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from glowserve.cli.failure import Failure
from glowserve.cli.proof import proof_json, proof_table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Its flags."""
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="what `glowserve train` left")
    parser.add_argument("model", type=Path, metavar="REPOSITORY/MODEL", help="gets the next VERSION")
    parser.add_argument(
        "--data", help="where held-out images come from, if not from where they came in training"
    )
    parser.add_argument(
        "--precision",
        default="fp32",
        choices=["fp32", "fp16", "int8"],
        help="what the coupling networks compute in; the rest is always float32",
    )
    parser.add_argument(
        "--from",
        dest="implementation",
        choices=["rosinality", "y0ast"],
        help="the checkpoint is a state_dict of rosinality/glow-pytorch or y0ast/Glow-PyTorch; needs --config, --data",
    )
    parser.add_argument(
        "--config", type=Path, help="JSON of the arguments that a model from elsewhere was built with"
    )
    parser.add_argument(
        "--triton", type=Path, metavar="DIR", help="also lay the bundle out as a Triton model repository"
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(args: argparse.Namespace) -> int:
    """Exports a checkpoint."""
    from glowserve_export.bundle import export
    from glowserve_export.errors import ExportError
    from glowserve_export.source import trained_elsewhere, trained_here
    from glowserve_export.triton import write_triton
    from glowserve_training.errors import TrainingError

    if (args.implementation is None) != (args.config is None):
        raise Failure("--from and --config go together: a checkpoint from elsewhere needs both", 2)
    _say(f"reading {args.checkpoint}")
    try:
        if args.implementation:
            source = trained_elsewhere(args.implementation, args.checkpoint, args.config)
        else:
            source = trained_here(args.checkpoint)
        bundle = export(source, args.model, data=args.data, precision=args.precision, say=_say)
        if args.triton:
            for path in write_triton(bundle, args.triton):
                _say(f"wrote {path}")
    except ExportError as error:
        raise Failure(error, 1) from error
    except (TrainingError, OSError) as error:
        raise Failure(error, 2) from error
    manifest = bundle.manifest
    if args.json:
        print(json.dumps({"bundle": str(bundle.path), "version": manifest.version} | proof_json(manifest)))
    else:
        print(proof_table(manifest))
        print(f"wrote {bundle.path}")
        print(f"next: glowserve serve --repository {args.model.parent}")
    return 0


def _say(text: str) -> None:
    print(text, file=sys.stderr)
