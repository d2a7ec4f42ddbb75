"""Which images a run held out, so that they are found again after their source has grown, moved or lost some.

An image is known by its key in the source, which says where to look, and by the SHA-256 of its prepared pixels, which
decides. A run also keeps the images themselves, if they are not too many, in an .npz file: "validation", "test" and, in
splits of version 2, "calibration", uint8 [N, H, W, C]; and with labels "validation_labels" and so on, int64 [N], and
"classes", the names of the classes, str [K].
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
from tqdm import tqdm

from glowserve.cores import cores
from glowserve.files import atomic_write
from glowserve.images import InvalidImageError, UInt8Array
from glowserve_training.config import DataConfig
from glowserve_training.data.images import HeldOutImages, Labels, read_unseen, split_held_out
from glowserve_training.data.parallel import prepare_in_parallel
from glowserve_training.data.source_images import SourceImages
from glowserve_training.data.sources import open_source

MOST_BYTES = 128 * 2**20
"""Of the images that a run keeps. At most 6,000 are held out: those of 84 x 84 pixels in colour are kept."""

_PARTS = ("validation", "test", "calibration")
# Of the arrays in the file.
_MOST_HEADERS = 2**16


@dataclass(frozen=True)
class KnownImage:
    """An image of a source, without its pixels."""

    key: str
    """`SourceImages.key`."""

    sha256: str
    """Of the prepared pixels, uint8 [H, W, C], in hexadecimal digits."""

    label: int | None = None
    """Its class; None if it has none."""

    def __post_init__(self) -> None:
        # It comes from a file.
        if not (isinstance(self.key, str) and isinstance(self.sha256, str)):
            raise TypeError("an image must be known by strings")
        if not isinstance(self.label, int | None):
            raise TypeError("a label must be a number")


@dataclass(frozen=True)
class HeldOutRecord:
    """The images that a run held out, in their order. Checkpoints store it."""

    validation: Sequence[KnownImage]
    test: Sequence[KnownImage]
    calibration: Sequence[KnownImage] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.images())

    def images(self) -> list[KnownImage]:
        """All of them."""
        return [*self.validation, *self.test, *self.calibration]

    @classmethod
    def of(cls, images: HeldOutImages) -> HeldOutRecord:
        """The record of images."""
        return cls(
            *(
                _known(
                    getattr(images, f"{part}_keys"), getattr(images, part), getattr(images, f"{part}_labels")
                )
                for part in _PARTS
            )
        )


def find_held_out(record: HeldOutRecord, config: DataConfig) -> tuple[HeldOutImages, list[KnownImage]]:
    """Looks for held-out images in a source: under their keys, and if most are not there, under their file names.

    Args:
        record: the images.
        config: the source, which may have grown or moved since.

    Returns:
        The images that were found, in the order of the record; and those that were not.

    Raises:
        DataError: the source cannot be opened.
    """
    known = record.images()
    source = list(open_source(config.data).values())
    missing = {image.sha256 for image in known}
    found: dict[str, UInt8Array] = {}
    with (
        tqdm(
            total=len(missing), desc="finding held-out images", unit="", leave=False, disable=None
        ) as progress,
        ThreadPoolExecutor(cores()) as pool,
    ):
        for part in (_whole, _file_name):
            for image in prepare_in_parallel(_candidates(source, known, part), config, pool):
                if not isinstance(image, InvalidImageError) and (digest := _sha256(image)) in missing:
                    found[digest] = image
                    missing.remove(digest)
                    progress.update()
                    if not missing:
                        break
            if len(missing) < len(found):
                break
    parts: dict[str, Any] = {
        part: _stack(getattr(record, part), found, config.image_shape) for part in _PARTS
    }
    parts |= {f"{part}_labels": _labels(getattr(record, part), found) for part in _PARTS}
    return HeldOutImages(**parts), [image for image in known if image.sha256 in missing]


def load_held_out(config: DataConfig, most: int | None = None) -> HeldOutImages:
    """The held-out images that `load_images` yields, or those of the .npz file that a run kept.

    Args:
        config: the images.
        most: reads only the first few of each part of a source, at most so many.

    Raises:
        DataError: see `load_images`.
    """
    return _kept(config) or split_held_out(config, most)


def load_unseen(config: DataConfig, most: int | None = None) -> HeldOutImages:
    """Images that the model was not trained on: all of a source, split by `split_unseen`, or the file that a run kept.

    Args:
        config: the images.
        most: see `load_held_out`.

    Raises:
        DataError: see `load_images`.
    """
    return _kept(config) or read_unseen(config, most)


def read_held_out(path: Path) -> HeldOutImages | None:
    """The images in a file that `write_held_out` wrote; None if it is missing, damaged or another kind of file."""
    try:
        with ZipFile(path) as archive:  # a small file may hold large arrays
            if sum(info.file_size for info in archive.infolist()) > MOST_BYTES + _MOST_HEADERS:
                return None
        with np.load(path, allow_pickle=False) as file:
            parts = {part: file[part] for part in _PARTS if part in file}
            labels = {f"{part}_labels": file[f"{part}_labels"] for part in _PARTS if f"{part}_labels" in file}
            classes = file["classes"].tolist() if "classes" in file else ()
            images = HeldOutImages(**parts, **labels, classes=classes)
    except Exception:  # zip and NumPy raise many kinds of errors for foreign bytes
        return None
    shapes = {part.shape[1:] for part in parts.values()}
    if len(shapes) != 1 or any(part.dtype != np.uint8 for part in parts.values()):
        return None
    fit = all(
        own.dtype == np.int64 and own.shape == (len(getattr(images, name.removesuffix("_labels"))),)
        for name, own in labels.items()
    )
    return images if fit else None


def write_held_out(images: HeldOutImages, path: Path) -> None:
    """Writes the images to a file, completely or not at all.

    Raises:
        OSError: it cannot be written.
    """
    with atomic_write(path) as file:
        arrays: dict[str, Any] = {
            part: getattr(images, part) for part in _PARTS if len(getattr(images, part))
        }
        labels = {f"{part}_labels": getattr(images, f"{part}_labels") for part in arrays}
        arrays |= {name: own for name, own in labels.items() if own is not None}
        if images.classes:
            arrays["classes"] = np.array(images.classes, str)
        np.savez(file, **arrays)


def _kept(config: DataConfig) -> HeldOutImages | None:
    """The images of the .npz file that a run kept; None if the data is no such file, or of images of another shape."""
    path = Path(config.data)
    kept = read_held_out(path) if path.suffix == ".npz" else None
    return kept if kept is not None and kept.validation.shape[1:] == config.image_shape else None


def _candidates(
    source: Sequence[SourceImages], known: Sequence[KnownImage], part: Callable[[str], str]
) -> Iterator[tuple[SourceImages, int]]:
    """The images of a source whose keys have a part in common with those of known images."""
    wanted = {part(image.key) for image in known}
    for images in source:
        for index in range(len(images)):
            if part(images.key(index)) in wanted:
                yield images, index


def _whole(key: str) -> str:
    return key


def _file_name(key: str) -> str:
    return key.rpartition("/")[2]


def _known(keys: Sequence[str], images: UInt8Array, labels: Labels | None) -> list[KnownImage]:
    numbers = [None] * len(keys) if labels is None else labels.tolist()
    known = zip(keys, images, numbers, strict=True)
    return [KnownImage(key, _sha256(image), label) for key, image, label in known]


def _sha256(image: UInt8Array) -> str:
    return hashlib.sha256(image.tobytes()).hexdigest()


def _labels(known: Sequence[KnownImage], found: Mapping[str, UInt8Array]) -> Labels | None:
    labels = [image.label for image in known if image.sha256 in found]
    return None if None in labels else np.array(labels, np.int64)


def _stack(
    known: Sequence[KnownImage], found: Mapping[str, UInt8Array], shape: tuple[int, ...]
) -> UInt8Array:
    images = [found[image.sha256] for image in known if image.sha256 in found]
    return np.stack(images) if images else np.empty((0, *shape), np.uint8)
