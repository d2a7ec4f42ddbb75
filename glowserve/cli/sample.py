"""`glowserve sample`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from tqdm import tqdm

from glowserve.cli.failure import Failure
from glowserve.cli.target import add_target_arguments, open_target
from glowserve.folders import FILE_SUFFIXES
from glowserve.grid import grid, grid_shape
from glowserve.images import UInt8Array, to_pil
from glowserve.output import counted, printable
from glowserve.results import Samples

# Grids are enlarged to about this many pixels of their longer side.
_GRID_PIXELS = 512
# A message names so many samples.
_NAMED = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's flags."""
    add_target_arguments(parser)
    parser.add_argument("--n", type=int, default=64, help="how many images; default: 64")
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        help="a .png file for a grid of all images, or a folder for PNG files",
    )
    parser.add_argument(
        "--temperature", type=float, default=1.0, help="below 1, samples are more typical; default: 1"
    )
    parser.add_argument("--seed", type=int, help="the same seed gives the same images; default: random")
    parser.add_argument(
        "--class",
        dest="class_name",
        default="",
        metavar="NAME",
        help="of a class-conditional model: draw this class; default: each image has a class of its own",
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(args: argparse.Namespace) -> int:
    """Draws images, saves them, and prints the seed. The exit code is 1 if a sample is not finite and has no image.

    Raises:
        Failure: an argument is wrong, or the images cannot be drawn or saved.
    """
    if args.n < 1:
        raise Failure(f"--n is {args.n}; it must be 1 or more", 2)
    output = _output(args.out)
    done, not_finite = 0, list[int]()
    with (
        open_target(args) as target,
        tqdm(total=args.n, desc="sampling", unit="", disable=None, leave=False) as bar,
    ):
        output.open()
        for samples in target.client.iter_samples(
            args.n,
            temperature=args.temperature,
            seed=args.seed,
            class_name=args.class_name,
            model=target.model,
        ):
            output.write(samples)
            done += len(samples)
            not_finite += samples.not_finite.tolist()
            bar.update(len(samples) + len(samples.not_finite))
        output.close()
    result = {
        "out": str(args.out),
        "n": done,
        "not_finite": not_finite,
        "seed": samples.seed,
        "model": samples.model,
        "version": samples.version,
    }
    if args.json:
        print(json.dumps(result))
    else:
        print(printable(f"wrote {args.out}: {counted(done, 'image')} with seed {samples.seed}"))
    if not_finite:
        named = ", ".join(map(str, not_finite[:_NAMED])) + (", ..." if len(not_finite) > _NAMED else "")
        print(
            f"glowserve: {len(not_finite)} of {args.n} samples are not finite and were left out: {named}; lower "
            "--temperature, or train the model longer",
            file=sys.stderr,
        )
    return 1 if not_finite else 0


def _output(out: Path) -> _Grid | _Folder:
    """What `--out` selects.

    Raises:
        Failure: it selects nothing.
    """
    if out.is_dir():
        return _Folder(out)
    if out.suffix.lower() == ".png":
        if not out.parent.is_dir():
            raise Failure(f"--out is {out}; there is no folder {out.parent}", 2)
        return _Grid(out)
    # A folder's name may have a dot, as in samples_t0.7.
    if out.suffix.lower() in FILE_SUFFIXES:
        raise Failure(f"--out is {out}; it must end in .png, or be a folder", 2)
    return _Folder(out)


class _Grid:
    """Saves all images as a grid in one PNG file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._images: list[UInt8Array] = []

    def open(self) -> None:
        """Does nothing."""

    def write(self, samples: Samples) -> None:
        """Keeps the images."""
        self._images.append(samples.images)

    def close(self) -> None:
        """Writes the file."""
        images = np.concatenate(self._images)
        rows, columns = grid_shape(images)
        longer = max(rows * (images.shape[1] + 1), columns * (images.shape[2] + 1))
        grid(images, scale=max(1, _GRID_PIXELS // longer)).save(self._path)


class _Folder:
    """Saves each image as a PNG file: 000000.png, 000001.png and so on, by the index of the sample."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def open(self) -> None:
        """Makes the folder."""
        self._path.mkdir(parents=True, exist_ok=True)

    def write(self, samples: Samples) -> None:
        """Writes the images. Removes older files in place of samples that have none."""
        for index, image in zip(samples.indices, samples.images, strict=True):
            to_pil(image).save(self._file(index))
        for index in samples.not_finite:
            self._file(index).unlink(missing_ok=True)

    def _file(self, index: int) -> Path:
        return self._path / f"{index:06}.png"

    def close(self) -> None:
        """Does nothing."""
