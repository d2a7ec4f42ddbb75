"""`glowserve interpolate`."""

from __future__ import annotations

import argparse
from pathlib import Path

from glowserve.cli.failure import Failure
from glowserve.cli.strip import add_strip_argument, check_strip, save_strip
from glowserve.cli.target import add_target_arguments, open_target
from glowserve.output import printable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's flags."""
    parser.add_argument("one", type=Path, metavar="FROM", help="the first picture")
    parser.add_argument("other", type=Path, metavar="TO", help="the last picture")
    add_target_arguments(parser)
    parser.add_argument(
        "--steps", type=int, default=8, help="how many images, both ends included; default: 8"
    )
    add_strip_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Interpolates between two pictures, and saves the images side by side.

    Raises:
        Failure: an argument is wrong, or the images cannot be computed or saved.
    """
    if args.steps < 2:
        raise Failure(f"--steps is {args.steps}; it must be 2 or more", 2)
    check_strip(args.out)
    with open_target(args) as target:
        images = target.client.interpolate(args.one, args.other, steps=args.steps, model=target.model)
    save_strip(images, args.out)
    print(printable(f"wrote {args.out}: {len(images)} images from {args.one} to {args.other}"))
    return 0
