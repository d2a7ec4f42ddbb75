"""`glowserve models`."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

from glowserve.cli.failure import Failure
from glowserve.cli.target import add_target_arguments, open_target
from glowserve.images import COLOURS
from glowserve.output import counted, printable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's flags."""
    add_target_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print the list as JSON")


def run(args: argparse.Namespace) -> int:
    """Prints the models of a target, or the versions of one model.

    Raises:
        Failure: the target does not have the model, or cannot be reached.
    """
    with open_target(args) as target:
        models = [model for model in target.client.models() if target.model in ("", model.name)]
    if not models:
        raise Failure(f"model {target.model!r} is not served there", 1)
    if args.json:
        print(json.dumps([asdict(model) for model in models]))
        return 0
    print(f"{'model':<24}{'version':>8}  {'state':<8}  image")
    for model in models:
        colour = COLOURS.get(model.channels, f"{model.channels} channels")
        image = (
            f"{model.height} x {model.width} {colour}, {counted(model.n_bits, 'bit')}"
            if model.height
            else "-"
        )
        if model.classes:
            image += f", {len(model.classes)} classes"
        print(printable(f"{model.name:<24}{model.version:>8}  {model.state:<8}  {image}"))
        if model.attributes:
            print(printable(f"  attributes: {', '.join(model.attributes)}"))
        if model.reason:
            print(printable(f"  {model.reason}"))
    return 0
