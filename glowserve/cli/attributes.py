"""`glowserve attributes`."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from glowserve.cli.failure import Failure
from glowserve.output import printable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument(
        "bundle",
        type=Path,
        metavar="BUNDLE",
        help="REPOSITORY/MODEL (the newest version), or .../VERSION; the next VERSION beside it is written",
    )
    parser.add_argument(
        "--data",
        required=True,
        metavar="LABELLED",
        help="images with labels: a folder with a file labels.csv (a file's name, then a column for each label); a "
        "folder with a folder for each class; a .parquet or .npz file, or a data set of the Hugging Face hub, with a "
        "column of labels; or 'digits'",
    )
    parser.add_argument(
        "--label-column",
        action="append",
        default=[],
        metavar="NAME",
        help="a column of labels; may be given several times; default: all columns of labels.csv, else those that are "
        "known to hold classes, 'label' or 'labels'",
    )
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"], help="(default: auto)")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(args: argparse.Namespace) -> int:
    """Writes a bundle with the same graphs and directions of attributes as the next version."""
    from glowserve_export.attributes import add_attributes
    from glowserve_export.errors import ExportError
    from glowserve_training.errors import TrainingError
    from glowserve_training.hardware import use_allowed_cores

    from glowserve.runtime.errors import GlowserveError
    from glowserve.runtime.repository import newest_bundle

    use_allowed_cores()
    try:
        bundle, measured = add_attributes(
            newest_bundle(args.bundle), args.data, args.label_column, device=args.device, say=_say
        )
    except ExportError as error:
        raise Failure(error, 1) from error
    except (TrainingError, GlowserveError, ValueError, OSError) as error:
        raise Failure(error, 2) from error
    if args.json:
        attributes = [asdict(each) for each in measured]
        print(
            json.dumps(
                {"bundle": str(bundle.path), "version": bundle.manifest.version, "attributes": attributes}
            )
        )
        return 0
    print(f"{'attribute':<24}{'with':>8}{'without':>9}{'separated':>11}  held-out images with and without")
    for each in measured:
        held_out = f"{each.held_out_having} and {each.held_out_lacking}"
        row = f"{each.name:<24}{each.having:>8}{each.lacking:>9}{each.separated:>11.1%}  {held_out}"
        print(printable(row))
    print(
        "separated: of the images with the attribute and of those without, the shares on their side; 50% is chance"
    )
    print(printable(f"wrote {bundle.path}"))
    return 0


def _say(text: str) -> None:
    print(printable(text), file=sys.stderr)
