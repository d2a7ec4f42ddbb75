"""The images of a model: prepared to its shape and split into train, validation and test."""

from __future__ import annotations

import hashlib
import math
import os
import tempfile
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from glowserve.images import (
    InvalidImageError,
    Preparation,
    UInt8Array,
    prepare,
)
from glowserve_training.data.damage import Damage
from glowserve_training.data.imagefile import ImageFile
from glowserve_training.data.sources import Pictures, open_source
from glowserve_training.errors import DataError

# Fewer images than this are not worth a model, and leave nothing to split off.
_FEWEST_IMAGES = 50
# A tenth is held out for validation, and another for test, where the source has no such splits of its own.
_HELD_OUT_SHARE = 10
# More held-out images than this cost time and tell nothing new: the standard error is small by then.
_MOST_HELD_OUT = 1000
# Training images of more bytes than this lie in a file instead.
MEMORY_LIMIT = 2**30

# By split, the pictures, and which of them are meant.
_Split = dict[str, tuple[Pictures, np.ndarray]]


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What the images are; it travels in the checkpoint, so that an export finds the held-out ones again."""

    data: str
    """What `--data` was: "digits", a path, or a dataset's hub name."""

    image_size: int
    """Pixels a side, H = W."""

    channels: int
    """1 (grey) or 3 (RGB)."""

    split_seed: int = 0
    """Which images are held out."""

    preparation: Preparation = field(default_factory=Preparation)
    """How a picture becomes an image."""

    def __post_init__(self) -> None:
        if self.split_seed < 0:
            raise ValueError(f"split_seed is {self.split_seed}; it must be 0 or more")


@dataclass(frozen=True)
class HeldOutImages:
    """Two disjoint sets of images that a model is not trained on, each uint8 [N, H, W, C]."""

    validation: UInt8Array
    """What watches over training, and what scores are calibrated with."""

    test: UInt8Array
    """What no decision depends on; exports are proved on it."""

    @property
    def digest(self) -> str:
        """SHA-256 of all of them, to tell whether a source still yields the same split."""
        digest = hashlib.sha256(self.validation.tobytes())
        digest.update(self.test.tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class ImageData(HeldOutImages):
    """These, and a third set, disjoint from both."""

    train: UInt8Array
    """What the model learns from, [N, H, W, C]; a read-only `np.memmap` if it is too large for memory."""


def load_images(
    config: DataConfig, *, spill: Path | None = None, memory_limit: int = MEMORY_LIMIT
) -> ImageData:
    """Reads, prepares and splits the images of a source.

    The split is a function of the source's order and `split_seed`. Where the source has a validation or a
    test split of its own, that is used; of either, at most 1,000 images. A picture that cannot be read is left
    out of its split, and moves no other; a line on stderr tells of it.

    Args:
        config: which images.
        spill: the folder of the file that holds training images beyond `memory_limit`. One that is there
            already, of the same images, is used as it is. Without a folder, the file is a temporary one, where
            $TMPDIR says, that goes with the array.
        memory_limit: bytes, N * H * W * C of the training images.

    Raises:
        DataError: there is nothing to read, there are too few, more than 1 in 100 pictures (and more than one)
            cannot be read, or there is no room for the file.
    """
    with _reading(config, ("validation", "test", "train")) as reader:
        held_out = reader.held_out()
        return ImageData(held_out.validation, held_out.test, reader.train(held_out, spill, memory_limit))


def load_held_out(config: DataConfig) -> HeldOutImages:
    """Of the same split, what is held out alone.

    Raises:
        DataError: as `load_images`, of the held-out pictures.
    """
    with _reading(config, ("validation", "test")) as reader:
        return reader.held_out()


def _split(config: DataConfig) -> _Split:
    """For train, validation and test the pictures, and which of them are meant."""
    splits = open_source(config.data)
    total = sum(len(pictures) for pictures in splits.values())
    if total < _FEWEST_IMAGES:
        raise DataError(
            f"data {config.data!r} has {total} images; training and held-out proof need {_FEWEST_IMAGES} or more"
        )
    order = np.random.Generator(np.random.Philox(config.split_seed)).permutation(len(splits["train"]))
    chosen: _Split = {}
    for name in ("test", "validation"):
        if name in splits:
            shuffled = np.random.Generator(np.random.Philox(config.split_seed)).permutation(len(splits[name]))
            chosen[name] = (splits[name], shuffled[:_MOST_HELD_OUT])
        else:
            held_out = min(_MOST_HELD_OUT, len(splits["train"]) // _HELD_OUT_SHARE)
            chosen[name] = (splits["train"], order[:held_out])
            order = order[held_out:]
    chosen["train"] = (splits["train"], order)
    for name, (_, indices) in chosen.items():
        if not len(indices):
            raise DataError(
                f"data {config.data!r} leaves no images for {name}: it has "
                f"{', '.join(f'{len(pictures)} for {split}' for split, pictures in splits.items())}"
            )
    return chosen


@contextmanager
def _reading(config: DataConfig, names: Iterable[str]) -> Iterator[_Reader]:
    """What reads the splits of these names, and tells in the end what it had to leave out."""
    chosen = _split(config)
    total = sum(len(indices) for _, indices in chosen.values())
    chosen = {name: chosen[name] for name in names}
    read = sum(len(indices) for _, indices in chosen.values())
    damage = Damage()
    with (
        tqdm(total=read, desc="reading images", unit="", leave=False, disable=None) as progress,
        ThreadPoolExecutor(os.cpu_count()) as pool,  # decoding and resizing release the interpreter lock
    ):
        yield _Reader(config, chosen, total, pool, damage, progress)
    damage.tell(read)


class _Reader:
    """Prepares the pictures of splits.

    Args:
        config: to what.
        chosen: the splits, the last of which is read last.
        total: pictures in these and all other splits.
        pool: what prepares.
        damage: what is left out.
        progress: counts pictures.
    """

    def __init__(
        self,
        config: DataConfig,
        chosen: _Split,
        total: int,
        pool: ThreadPoolExecutor,
        damage: Damage,
        progress: tqdm[None],
    ) -> None:
        self._config, self._chosen, self._total = config, chosen, total
        self._pool, self._damage, self._progress = pool, damage, progress
        self._shape = (config.image_size, config.image_size, config.channels)

    def held_out(self) -> HeldOutImages:
        return HeldOutImages(self._in_memory("validation"), self._in_memory("test"))

    def train(self, held_out: HeldOutImages, spill: Path | None, memory_limit: int) -> UInt8Array:
        """In memory, or beyond its limit in a file: of this configuration and of what was held out."""
        if len(self._chosen["train"][1]) * math.prod(self._shape) <= memory_limit:
            return self._in_memory("train")
        key = asdict(self._config) | {"pictures": self._total, "held_out_sha256": held_out.digest}
        if (
            spill is None
        ):  # the file has no name any more when this returns, and is there as long as it is mapped
            place: AbstractContextManager[str | Path] = tempfile.TemporaryDirectory(prefix="glowserve-")
        else:
            place = nullcontext(spill)
        with place as folder:
            return self._in_file("train", ImageFile(Path(folder), key))

    def _in_memory(self, name: str) -> UInt8Array:
        images = np.empty((len(self._chosen[name][1]), *self._shape), np.uint8)
        n = 0
        for image in self._images(name):
            images[n] = image
            n += 1
        return images[:n]

    def _in_file(self, name: str, file: ImageFile) -> UInt8Array:
        indices = self._chosen[name][1]
        with file.lock:
            if (found := file.open()) is not None:
                images, damage = found
                self._damage.count, self._damage.first = damage.count, damage.first
                self._progress.update(len(indices))
                return images
            file.write(self._images(name), (len(indices), *self._shape), self._damage)
            if (found := file.open()) is None:
                raise DataError(
                    f"{file.path} was written and cannot be read; see whether its disk is in order"
                )
            return found[0]

    def _images(self, name: str) -> Iterator[UInt8Array]:
        """The images of a split in order, each [H, W, C], without those that are damaged."""
        pictures, indices = self._chosen[name]
        good = 0
        for index, image in zip(indices, self._prepared(pictures, indices), strict=True):
            if isinstance(image, InvalidImageError):
                self._damage.add(pictures.name(int(index)), image)
            else:
                good += 1
                yield image
            self._progress.update()
        if name == next(reversed(self._chosen)):
            read = sum(len(indices) for _, indices in self._chosen.values())
            self._damage.check(self._config.data, read, self._total)
        if not good:
            raise DataError(
                f"data {self._config.data!r} leaves no images for {name}: none of its {len(indices)} pictures can "
                f"be read; damaged are {self._damage}; repair them"
            )

    def _prepared(self, pictures: Pictures, indices: np.ndarray) -> Iterator[UInt8Array | InvalidImageError]:
        """In order, and never far ahead: all of them together may be too many for memory."""

        def prepare_one(index: int) -> UInt8Array | InvalidImageError:
            try:
                return prepare(pictures[index], *self._shape, self._config.preparation)
            except InvalidImageError as error:
                return error

        ahead = 4 * (os.cpu_count() or 1)
        waiting: deque[Future[UInt8Array | InvalidImageError]] = deque()
        for index in indices:
            waiting.append(self._pool.submit(prepare_one, int(index)))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
