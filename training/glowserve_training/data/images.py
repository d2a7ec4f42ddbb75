"""The images of a model: prepared to its shape, and split into train, validation, calibration and test."""

from __future__ import annotations

import hashlib
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from glowserve.cores import cores
from glowserve.images import InvalidImageError, UInt8Array
from glowserve_training.config import DataConfig
from glowserve_training.data.classes import read_classes
from glowserve_training.data.image_file import ImageFile
from glowserve_training.data.parallel import prepare_in_parallel
from glowserve_training.data.report import describe_source, describe_splits
from glowserve_training.data.sources import open_source
from glowserve_training.data.splits import Split, choose_splits, split_unseen
from glowserve_training.data.unreadable import UnreadableImages
from glowserve_training.errors import DataError, TooFewImagesError
from glowserve_training.stored import stored_fields

Labels = npt.NDArray[np.int64]

_READ_ORDER = ("validation", "test", "calibration", "train")
# Training images of more bytes than this are written to a file and memory-mapped.
MEMORY_LIMIT = 2**30


@dataclass(frozen=True)
class HeldOutImages:
    """Three disjoint sets of images that a model is not trained on, each uint8 [N, H, W, C]."""

    validation: UInt8Array
    """Chooses the weights, the ranges of int8 and whatever else is fitted."""

    test: UInt8Array
    """Used for no decision; bundles are verified on it."""

    calibration: UInt8Array = field(default_factory=lambda: np.empty((0, 1, 1, 1), np.uint8), kw_only=True)
    """The images whose scores percentiles come from; nothing else reads them. None in splits of version 1."""

    validation_keys: Sequence[str] = field(default=(), kw_only=True)
    """What the source calls the validation images, `SourceImages.key`."""

    test_keys: Sequence[str] = field(default=(), kw_only=True)
    """What the source calls the test images."""

    calibration_keys: Sequence[str] = field(default=(), kw_only=True)
    """What the source calls the calibration images."""

    validation_labels: Labels | None = field(default=None, kw_only=True)
    """The classes of the validation images, [N], if the configuration has a column of labels."""

    test_labels: Labels | None = field(default=None, kw_only=True)
    """The classes of the test images."""

    calibration_labels: Labels | None = field(default=None, kw_only=True)
    """The classes of the calibration images."""

    classes: Sequence[str] = field(default=(), kw_only=True)
    """The names of the classes, by number, where a run keeps them with the images."""

    @property
    def digest(self) -> str:
        """SHA-256 of all of them, to check whether a source still yields the same images."""
        digest = hashlib.sha256(self.validation.tobytes())
        digest.update(self.test.tobytes())
        digest.update(self.calibration.tobytes())
        return digest.hexdigest()

    @property
    def nbytes(self) -> int:
        """The size of all of them in memory."""
        return self.validation.nbytes + self.test.nbytes + self.calibration.nbytes

    @property
    def for_percentiles(self) -> UInt8Array:
        """The calibration images; of a split of version 1, which has none, the validation images."""
        return self.calibration if len(self.calibration) else self.validation


@dataclass(frozen=True)
class ImageData(HeldOutImages):
    """Held-out images, and training images that are disjoint from them."""

    train: UInt8Array
    """uint8 [N, H, W, C]; a read-only `np.memmap` if too large for memory."""

    train_labels: Labels | None = field(default=None, kw_only=True)
    """The classes of the training images, [N]."""

    files: Sequence[str] | None = field(default=None, kw_only=True)
    """`Source.files`: of a folder, the images that all of this came from."""


def load_images(
    config: DataConfig,
    *,
    files: Sequence[str] | None = None,
    cache: Path | None = None,
    memory_limit: int = MEMORY_LIMIT,
    say: Callable[[str], None] = lambda _: None,
) -> ImageData:
    """Reads, prepares and splits the images of a source; see `choose_splits`.

    Unreadable images are skipped, without moving any other image to another split, and reported in one line on stderr.

    Args:
        config: the images.
        files: of a folder, the only files to use; see `open_source`.
        cache: a folder for the file of training images beyond `memory_limit`; an existing file of the same images is
            used. None for a temporary file in $TMPDIR, which is deleted with the array.
        memory_limit: in bytes; N * H * W * C for the training images.
        say: called with a line of text for each thing that a user should know about the images.

    Raises:
        DataError: the source cannot be opened, has too few images, more than 1 in 10 of them (and more than one)
            are unreadable, or there is no room for the file.
    """
    source = open_source(config.data, files=files)
    for line in describe_source(source, config):
        say(line)
    with _open_reader(config, choose_splits(source, config)) as reader:
        held_out = reader.held_out()
        train, train_labels = reader.train(held_out, cache, memory_limit)
    say(describe_splits(source, config, len(train), held_out))
    return ImageData(**vars(held_out), train=train, train_labels=train_labels, files=source.files)


def split_held_out(config: DataConfig, most: int | None = None) -> HeldOutImages:
    """The same held-out images as `load_images` yields, without reading the training images.

    Args:
        config: the images.
        most: reads only the first few of each part, at most so many, and reports none that is skipped.

    Raises:
        DataError: see `load_images`.
    """
    splits = choose_splits(open_source(config.data), config)
    with _open_reader(config, splits, without=("train",), most=most) as reader:
        return reader.held_out()


def read_unseen(config: DataConfig, most: int | None = None) -> HeldOutImages:
    """Reads, prepares and splits the images of a source that the model was not trained on; see `split_unseen`.

    Args:
        config: the images.
        most: see `split_held_out`.

    Raises:
        DataError: see `load_images`.
    """
    with _open_reader(config, split_unseen(open_source(config.data), config), most=most) as reader:
        return reader.held_out()


@contextmanager
def _open_reader(
    config: DataConfig, splits: dict[str, Split], without: Sequence[str] = (), most: int | None = None
) -> Iterator[_Reader]:
    """A reader of all splits but some, the training images last; reports skipped images when it is closed.

    With `most` it reads only so many of each split, and reports nothing.
    """
    total = sum(len(indices) for _, indices in splits.values())
    splits = {
        name: (splits[name][0], splits[name][1][:most])
        for name in _READ_ORDER
        if name in splits and name not in without
    }
    read = sum(len(indices) for _, indices in splits.values())
    unreadable = UnreadableImages()
    with (
        tqdm(total=read, desc="reading images", unit="", leave=False, disable=None) as progress,
        ThreadPoolExecutor(cores()) as pool,  # decoding and resizing release the GIL
    ):
        yield _Reader(config, splits, total, pool, unreadable, progress)
    if most is None:
        unreadable.report(read)


class _Reader:
    """Reads and prepares the images of splits.

    Args:
        config: the images, and their shape.
        splits: the splits, in the order in which they are read.
        total: images in all splits of the source together.
        pool: threads that prepare images.
        unreadable: collects the skipped images.
        progress: counts images.
    """

    def __init__(
        self,
        config: DataConfig,
        splits: dict[str, Split],
        total: int,
        pool: ThreadPoolExecutor,
        unreadable: UnreadableImages,
        progress: tqdm[None],
    ) -> None:
        self._config, self._splits, self._total = config, splits, total
        self._pool, self._unreadable, self._progress = pool, unreadable, progress
        self._shape = config.image_shape
        self._keys: dict[str, list[str]] = {name: [] for name in splits}
        self._classes = None if config.label_column is None else read_classes(config)
        self._labels: dict[str, list[int]] = {name: [] for name in splits}

    def held_out(self) -> HeldOutImages:
        parts: dict[str, Any] = {}
        for name in self._splits:
            if name != "train":
                parts |= {name: self._in_memory(name), f"{name}_keys": self._keys[name]}
                parts[f"{name}_labels"] = self._labels_of(name)
        return HeldOutImages(**parts)

    def train(
        self, held_out: HeldOutImages, cache: Path | None, memory_limit: int
    ) -> tuple[UInt8Array, Labels | None]:
        """In memory, or beyond the limit memory-mapped from a file whose key includes the held-out images."""
        if len(self._splits["train"][1]) * math.prod(self._shape) <= memory_limit:
            return self._in_memory("train"), self._labels_of("train")
        key = stored_fields(self._config) | {"pictures": self._total, "held_out_sha256": held_out.digest}
        key.pop("split_version")  # the held-out images tell it
        if cache is not None:
            return self._in_file("train", ImageFile(cache, key)), self._labels_of("train")
        # Without a name the file is still mapped, and deleted with the array.
        with tempfile.TemporaryDirectory(prefix="glowserve-") as folder:
            return self._in_file("train", ImageFile(Path(folder), key)), self._labels_of("train")

    def _labels_of(self, name: str) -> Labels | None:
        """Of the images that have been read."""
        return None if self._classes is None else np.array(self._labels[name], np.int64)

    def _in_memory(self, name: str) -> UInt8Array:
        images = np.empty((len(self._splits[name][1]), *self._shape), np.uint8)
        n = 0
        for image in self._images(name):
            images[n] = image
            n += 1
        return images[:n]

    def _in_file(self, name: str, file: ImageFile) -> UInt8Array:
        indices = self._splits[name][1]
        with file.lock:
            if (found := file.open()) is not None:
                images, unreadable = found
                self._unreadable.count, self._unreadable.first = unreadable.count, unreadable.first
                self._labels[name] = file.labels()
                self._progress.update(len(indices))
                return images
            shape = len(indices), *self._shape
            file.write(self._images(name), shape, self._unreadable, self._labels[name])
            if (found := file.open()) is None:
                raise DataError(f"{file.path} was written and cannot be read back; check its disk")
            return found[0]

    def _images(self, name: str) -> Iterator[UInt8Array]:
        """The readable images of a split in order, each [H, W, C]."""
        source, indices = self._splits[name]
        readable = 0
        wanted = ((source, int(index)) for index in indices)
        prepared = prepare_in_parallel(wanted, self._config, self._pool)
        for index, image in zip(map(int, indices), prepared, strict=True):
            if isinstance(image, InvalidImageError):
                self._unreadable.add(source.name(index), image)
            else:
                readable += 1
                if name != "train":
                    self._keys[name].append(source.key(index))
                if self._classes is not None:
                    self._labels[name].append(self._classes[source.key(index)])
                yield image
            self._progress.update()
        if name == next(reversed(self._splits)):
            read = sum(len(indices) for _, indices in self._splits.values())
            self._unreadable.check(self._config.data, read, self._total)
        if not readable:
            raise TooFewImagesError(
                f"data {self._config.data!r} leaves no images for {name}: none of the {len(indices)} can be read. "
                f"Unreadable are {self._unreadable}; repair them"
            )
