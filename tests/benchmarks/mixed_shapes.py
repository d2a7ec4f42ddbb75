r"""Two folders of pictures of mixed shapes, for models that are not square.

    python tests/benchmarks/mixed_shapes.py mnist.npz cifar10.parquet out/shapes
    glowserve train --data out/shapes/photographs --image-size 32x64 --out runs/photographs --levels 3 \
        --steps-per-level 4 --width 64 --batch-size 32 --steps 600
    glowserve train --data out/shapes/numbers --image-size 48x160 --fit pad --channels 1 --out runs/numbers --levels 3 \
        --steps-per-level 4 --width 64 --batch-size 16 --steps 500

photographs: windows of CIFAR-10's pictures, 12 to 24 pixels high and 24 to 32 wide. numbers: one to six digits of
MNIST side by side, black on white, cut off close to the ink, so that a number's width grows with its digits.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from glowserve_training.data.hugging_face import datasets
from PIL import Image

from glowserve.images import UInt8Array

_NUMBERS, _PHOTOGRAPHS = 6000, 12_000


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("mnist", type=Path, help="arrays train_images, uint8 [N, 28, 28], and test_images")
    parser.add_argument("cifar", type=Path, help="a .parquet file with a column of pictures")
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    with np.load(args.mnist) as file:
        digits = file["train_images"]
    _write(args.out / "numbers", (_number(digits, rng) for _ in range(_NUMBERS)))
    _write(args.out / "photographs", (_window(each, rng) for each in _pictures(args.cifar)))


def _number(digits: UInt8Array, rng: np.random.Generator) -> UInt8Array:
    """Some digits side by side, [H, W], black on white."""
    chosen = digits[rng.integers(len(digits), size=rng.integers(1, 7))]
    columns = [digit[:, digit.any(axis=0)] for digit in chosen]
    gap = np.zeros((28, 3), np.uint8)
    ink = np.concatenate([gap, *(piece for each in columns for piece in (each, gap))], axis=1)
    rows = np.flatnonzero(ink.any(axis=1))
    return 255 - np.pad(ink[rows[0] : rows[-1] + 1], ((3, 3), (0, 0)))


def _window(picture: UInt8Array, rng: np.random.Generator) -> UInt8Array:
    """A window of a picture [32, 32, 3]."""
    height, width = rng.integers(12, 25), rng.integers(24, 33)
    top, left = rng.integers(33 - height), rng.integers(33 - width)
    return picture[top : top + height, left : left + width]


def _pictures(path: Path) -> list[UInt8Array]:
    data = datasets.Dataset.from_parquet(str(path))
    (column,) = [name for name, feature in data.features.items() if isinstance(feature, datasets.Image)]
    files = data.select(range(_PHOTOGRAPHS)).cast_column(column, datasets.Image(decode=False))[column]
    return [np.asarray(Image.open(io.BytesIO(each["bytes"])).convert("RGB")) for each in files]


def _write(folder: Path, pictures: Iterable[UInt8Array]) -> None:
    folder.mkdir(parents=True)
    for index, pixels in enumerate(pictures):
        Image.fromarray(pixels).save(folder / f"{index:05}.png")


if __name__ == "__main__":
    main()
