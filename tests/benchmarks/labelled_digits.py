"""Labels the digits of MNIST by their pixels: thick or thin, slanted to the right or not, and the digit.

    python tests/benchmarks/labelled_digits.py mnist.npz out/labelled-digits.npz

Reads the arrays SPLIT_images, uint8 [N, 28, 28], and SPLIT_labels, the digits; writes SPLIT_images, SPLIT_thick,
SPLIT_slanted and SPLIT_digit. Thick and slanted are the halves above the median of the training images.

Thickness is twice the area of the ink divided by the length of its outline. Slant is the horizontal shear that the
second moments of the ink tell, as in Castro et al. 2019, "Morpho-MNIST", section 3.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import numpy.typing as npt

from glowserve.images import UInt8Array

Float64Array = npt.NDArray[np.float64]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("mnist", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    with np.load(args.mnist) as file:
        arrays = dict(file)
    labelled = {}
    for split in ("train", "test"):
        images = labelled[f"{split}_images"] = arrays[f"{split}_images"]
        labelled[f"{split}_digit"] = arrays[f"{split}_labels"]
        for name, measure in (("thick", thickness), ("slanted", slant)):
            middle = np.median(measure(arrays["train_images"]))
            labelled[f"{split}_{name}"] = (measure(images) > middle).astype(np.uint8)
    np.savez_compressed(args.out, **labelled)


def thickness(images: UInt8Array) -> Float64Array:
    """The mean width of the strokes of images [N, H, W], in pixels, [N]."""
    ink = np.pad(images / 255, ((0, 0), (1, 1), (1, 1)))
    dy, dx = np.diff(ink, axis=1)[:, :, 1:], np.diff(ink, axis=2)[:, 1:]
    outline = np.hypot(dy, dx).sum(axis=(1, 2))
    widths: Float64Array = 2 * ink.sum(axis=(1, 2)) / outline
    return widths


def slant(images: UInt8Array) -> Float64Array:
    """How far images [N, H, W] lean to the right: pixels across for each pixel up, [N]."""
    ink = images / images.sum(axis=(1, 2), keepdims=True)
    y, x = (axis.astype(np.float64) for axis in np.indices(images.shape[1:]))
    mean_y, mean_x = ((ink * axis).sum(axis=(1, 2))[:, None, None] for axis in (y, x))
    up = mean_y - y
    leaning: Float64Array = (ink * up * (x - mean_x)).sum(axis=(1, 2)) / (ink * up**2).sum(axis=(1, 2))
    return leaning


if __name__ == "__main__":
    main()
