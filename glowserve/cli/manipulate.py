"""`glowserve manipulate`."""

from __future__ import annotations

import argparse
import math
import re
from pathlib import Path

import numpy as np

from glowserve.cli.failure import Failure
from glowserve.cli.strip import add_strip_argument, check_strip, save_strip
from glowserve.cli.target import add_target_arguments, open_target
from glowserve.output import counted, printable

# More images than any service returns in a call by default.
_MOST = 4096


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's flags."""
    # argparse takes a value that begins with "-" for a flag unless this matches it: "-2:2:5" does not by default.
    parser._negative_number_matcher = re.compile(r"-[\d.]")
    parser.add_argument("picture", type=Path, metavar="PICTURE", help="the picture to change")
    add_target_arguments(parser)
    parser.add_argument(
        "--attribute",
        action="append",
        required=True,
        metavar="NAME",
        help="an attribute of the model, as `glowserve models` lists them; may be given several times: their "
        "directions are added up",
    )
    parser.add_argument(
        "--strengths",
        default="-2:2:5",
        metavar="START:STOP:COUNT",
        help="how far to go, one image each: evenly spaced, or numbers with commas between; 1 is the whole difference "
        "between images with and without the attribute; default: -2:2:5",
    )
    add_strip_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Moves a picture along attributes, and saves the images side by side.

    Raises:
        Failure: an argument is wrong, or the images cannot be computed or saved.
    """
    strengths = _strengths(args.strengths)
    check_strip(args.out)
    with open_target(args) as target:
        images = target.client.manipulate(args.picture, args.attribute, strengths, model=target.model)
    save_strip(images, args.out)
    along, numbers = " and ".join(args.attribute), ", ".join(f"{strength:g}" for strength in strengths)
    print(
        printable(
            f"wrote {args.out}: {counted(len(images), 'image')} from {args.picture} along {along}, strengths {numbers}"
        )
    )
    return 0


def _strengths(text: str) -> list[float]:
    """The numbers of `--strengths`.

    Raises:
        Failure: it has neither form, or too many numbers.
    """
    try:
        if ":" in text:
            start, stop, count = text.split(":")
            if not 1 <= int(count) <= _MOST:
                raise Failure(f"--strengths is {text}; COUNT must lie in 1 to {_MOST}", 2)
            found: list[float] = np.linspace(float(start), float(stop), int(count)).tolist()
        else:
            found = [float(number) for number in text.split(",")]
    except ValueError:
        found = []
    if not found or not all(map(math.isfinite, found)):
        raise Failure(
            f"--strengths is {text}; give START:STOP:COUNT, such as -2:2:5, or numbers, such as -1,0,1", 2
        )
    return found
