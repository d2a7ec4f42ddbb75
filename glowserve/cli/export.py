"""`glowserve export`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from glowserve.cli.failure import Failure
from glowserve.v1.manifest_pb2 import Verification


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Its flags."""
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="what `glowserve train` left")
    parser.add_argument("model", type=Path, metavar="REPOSITORY/MODEL", help="gets the next VERSION")
    parser.add_argument(
        "--data", help="where held-out images come from, if not from where they came in training"
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(args: argparse.Namespace) -> int:
    """Exports a checkpoint."""
    from export.bundle import export
    from export.errors import ExportError
    from training.errors import TrainingError

    try:
        bundle = export(
            args.checkpoint, args.model, data=args.data, say=lambda text: print(text, file=sys.stderr)
        )
    except ExportError as error:
        raise Failure(error, 1) from error
    except (TrainingError, OSError) as error:
        raise Failure(error, 2) from error
    verification = bundle.manifest.verification
    if args.json:
        figures = {check.name: check.value for check in verification.checks}
        print(json.dumps({"bundle": str(bundle.path), "version": bundle.manifest.version, "checks": figures}))
    else:
        print(proof_table(verification))
        print(f"wrote {bundle.path}")
        print(f"next: glowserve serve --repository {args.model.parent}")
    return 0


def proof_table(verification: Verification) -> str:
    """What was measured, as lines of text."""
    lines = [
        f"{f'proof on {verification.images} held-out images':<58}{'figure':>10}{'bound':>10}  worst layer"
    ]
    for check in verification.checks:
        bound = f"{check.bound:g}" if check.HasField("bound") else "stated"
        lines.append(f"{check.name:<58}{check.value:>10.3g}{bound:>10}  {check.layer}".rstrip())
    return "\n".join(lines)
