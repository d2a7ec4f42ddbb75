"""Every form in which callers may pass images."""

from __future__ import annotations

import io
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


def at_end(data: bytes) -> io.BytesIO:
    """An open file as it is after it has been written."""
    file = io.BytesIO()
    file.write(data)
    return file


def tensor(images: UInt8Array) -> Any:
    """A tensor of PyTorch."""
    import torch

    return torch.from_numpy(images)


class Pipe:
    """A file that can be read once, like a pipe."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def read(self) -> bytes:
        return self._data


FORMS: dict[str, tuple[Callable[[Five], Any], int]] = {
    "a path": (lambda five: five.folder / "0.png", 1),
    "a path as text": (lambda five: str(five.folder / "0.png"), 1),
    "a path of a format that is converted": (lambda five: five.folder / "0.bmp", 1),
    "bytes": (lambda five: encode_png(five.images[0]), 1),
    "bytes that can be changed": (lambda five: bytearray(encode_png(five.images[0])), 1),
    "a view of bytes": (lambda five: memoryview(encode_png(five.images[0])), 1),
    "the bytes of a format that is converted": (lambda five: (five.folder / "0.bmp").read_bytes(), 1),
    "an open file": (lambda five: io.BytesIO(encode_png(five.images[0])), 1),
    "an open file at its end": (lambda five: at_end(encode_png(five.images[0])), 1),
    "an open file of a format that is converted": (
        lambda five: io.BytesIO((five.folder / "0.bmp").read_bytes()),
        1,
    ),
    "a file that cannot be rewound": (lambda five: Pipe(encode_png(five.images[0])), 1),
    "open files": (lambda five: [at_end(encode_png(image)) for image in five.images], 5),
    "a set of paths in a dict": (lambda five: dict.fromkeys(sorted(five.folder.glob("*.png"))), 5),
    "an array of paths": (lambda five: np.array(sorted(map(str, five.folder.glob("*.png")))), 5),
    "an array of path objects": (lambda five: np.array(sorted(five.folder.glob("*.png"))), 5),
    "a tensor": (lambda five: tensor(five.images), 5),
    "tensors": (lambda five: [tensor(image) for image in five.images], 5),
    "an iterator of arrays": (lambda five: iter(five.images), 5),
    "an iterator of paths": (lambda five: iter(sorted(five.folder.glob("*.png"))), 5),
    "an iterator of arrays and files": (
        lambda five: (image if i % 2 else encode_png(image) for i, image in enumerate(five.images)),
        5,
    ),
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
            io.BytesIO(encode_png(five.images[2])),
            to_pil(five.images[3]),
            five.images[4],
        ],
        5,
    ),
    "an array that needs several calls": (lambda five: five.images[np.arange(200) % 5], 200),
    "paths that need several calls": (lambda five: 40 * sorted(five.folder.glob("*.png")), 200),
}
"""By name: makes the form of the first image or of all five, and the number of images, which repeat every five."""
