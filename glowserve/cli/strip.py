"""The strip of images side by side that `interpolate` and `manipulate` write."""

from __future__ import annotations

import argparse
from pathlib import Path

from glowserve.cli.failure import Failure
from glowserve.grid import grid
from glowserve.images import UInt8Array

# Strips are enlarged to about this width in pixels.
_STRIP_PIXELS = 1024


def add_strip_argument(parser: argparse.ArgumentParser) -> None:
    """Adds the flag for the strip's file."""
    parser.add_argument("--out", type=Path, required=True, help="a .png file for the images side by side")


def check_strip(out: Path) -> None:
    """Checks the file before the images are computed.

    Raises:
        Failure: it is no .png file in a folder that there is.
    """
    if out.suffix.lower() != ".png":
        raise Failure(f"--out is {out}; it must end in .png", 2)
    if not out.parent.is_dir():
        raise Failure(f"--out is {out}; there is no folder {out.parent}", 2)


def save_strip(images: UInt8Array, out: Path) -> None:
    """Saves images, uint8 [N, H, W, C], side by side and enlarged."""
    width = len(images) * (images.shape[2] + 1)
    grid(images, len(images), scale=max(1, _STRIP_PIXELS // width)).save(out)
