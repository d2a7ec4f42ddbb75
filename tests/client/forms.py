"""Every form in which callers may pass images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from glowserve.images import UInt8Array, encode_png, to_pil


class Five(NamedTuple):
    """Five images, and a folder with the same images as 0.png to 4.png, and the first also as 0.bmp."""

    images: UInt8Array
    folder: Path


def save_five(images: UInt8Array, folder: Path) -> Five:
    """Saves five images in a folder."""
    for i, image in enumerate(images):
        to_pil(image).save(folder / f"{i}.png")
    to_pil(images[0]).save(folder / "0.bmp")
    return Five(images, folder)


FORMS: dict[str, tuple[Callable[[Five], Any], int]] = {
    "a path": (lambda five: five.folder / "0.png", 1),
    "a path as text": (lambda five: str(five.folder / "0.png"), 1),
    "a path of a format that is converted": (lambda five: five.folder / "0.bmp", 1),
    "bytes": (lambda five: encode_png(five.images[0]), 1),
    "a Pillow image": (lambda five: to_pil(five.images[0]), 1),
    "an array of two dimensions": (lambda five: five.images[0, :, :, 0], 1),
    "an array of three dimensions": (lambda five: five.images[0], 1),
    "an array of four dimensions": (lambda five: five.images, 5),
    "an array in column-major order": (lambda five: np.asfortranarray(five.images), 5),
    "paths": (lambda five: sorted(five.folder.glob("*.png")), 5),
    "paths as text": (lambda five: [str(path) for path in sorted(five.folder.glob("*.png"))], 5),
    "several bytes": (lambda five: [encode_png(image) for image in five.images], 5),
    "Pillow images": (lambda five: tuple(to_pil(image) for image in five.images), 5),
    "arrays of two dimensions": (lambda five: [image[:, :, 0] for image in five.images], 5),
    "arrays of three dimensions": (lambda five: list(five.images), 5),
    "arrays of two and three dimensions": (
        lambda five: [five.images[0], five.images[1, :, :, 0], *five.images[2:]],
        5,
    ),
    "one of each": (
        lambda five: [
            five.folder / "0.png",
            str(five.folder / "1.png"),
            encode_png(five.images[2]),
            to_pil(five.images[3]),
            five.images[4],
        ],
        5,
    ),
    "an array that needs several calls": (lambda five: five.images[np.arange(200) % 5], 200),
    "paths that need several calls": (lambda five: 40 * sorted(five.folder.glob("*.png")), 200),
}
"""By name: makes the form of the first image or of all five, and the number of images, which repeat every five."""
