"""`glowserve models`."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

from glowserve.cli.failure import Failure
from glowserve.cli.target import add_target_arguments, target


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Its flags."""
    add_target_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print the list as JSON")


def run(args: argparse.Namespace) -> int:
    """Lists models."""
    with target(args) as asked:
        models = [model for model in asked.client.models() if asked.model in ("", model.name)]
    if not models:
        raise Failure(f"model {asked.model!r} is not served there", 1)
    if args.json:
        print(json.dumps([asdict(model) for model in models]))
        return 0
    print(f"{'model':<24}{'version':>8}  {'state':<8}  image")
    for model in models:
        colour = "grey" if model.channels == 1 else "RGB"
        image = f"{model.height} x {model.width} {colour}, {model.n_bits} bits" if model.height else "-"
        print(f"{model.name:<24}{model.version:>8}  {model.state:<8}  {image}")
        if model.reason:
            print(f"  {model.reason}")
    return 0
