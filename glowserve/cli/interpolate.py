"""`glowserve interpolate`."""

from __future__ import annotations

import argparse
from pathlib import Path

from glowserve.cli.failure import Failure
from glowserve.cli.target import add_target_arguments, open_target
from glowserve.grid import grid
from glowserve.output import printable

# Strips are enlarged to about this width in pixels.
_STRIP_PIXELS = 1024


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's flags."""
    parser.add_argument("one", type=Path, metavar="FROM", help="the first picture")
    parser.add_argument("other", type=Path, metavar="TO", help="the last picture")
    add_target_arguments(parser)
    parser.add_argument(
        "--steps", type=int, default=8, help="how many images, both ends included; default: 8"
    )
    parser.add_argument("--out", type=Path, required=True, help="a .png file for the images side by side")


def run(args: argparse.Namespace) -> int:
    """Interpolates between two pictures, and saves the images side by side.

    Raises:
        Failure: an argument is wrong, or the images cannot be computed or saved.
    """
    if args.steps < 2:
        raise Failure(f"--steps is {args.steps}; it must be 2 or more", 2)
    if args.out.suffix.lower() != ".png":
        raise Failure(f"--out is {args.out}; it must end in .png", 2)
    if not args.out.parent.is_dir():
        raise Failure(f"--out is {args.out}; there is no folder {args.out.parent}", 2)
    with open_target(args) as target:
        images = target.client.interpolate(args.one, args.other, steps=args.steps, model=target.model)
    width = len(images) * (images.shape[2] + 1)
    grid(images, len(images), scale=max(1, _STRIP_PIXELS // width)).save(args.out)
    print(printable(f"wrote {args.out}: {len(images)} images from {args.one} to {args.other}"))
    return 0
