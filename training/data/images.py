"""The images of a model: prepared to its shape and split into train, validation and test."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from tqdm import tqdm

from glowserve.images import InvalidImageError, Preparation, UInt8Array, prepare
from training.data.sources import Pictures, open_source
from training.errors import DataError

# Fewer images than this are not worth a model, and leave nothing to split off.
_FEWEST_IMAGES = 50
# A tenth is held out for validation, and another for test, where the source has no such splits of its own.
_HELD_OUT_SHARE = 10
# More held-out images than this cost time and tell nothing new: the standard error is small by then.
_MOST_HELD_OUT = 1000


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
    """What the model learns from, [N, H, W, C]."""


def load_images(config: DataConfig) -> ImageData:
    """Reads, prepares and splits the images of a source.

    The split is a function of the source's order and `split_seed`. Where the source has a validation or a
    test split of its own, that is used; of either, at most 1,000 images.

    Raises:
        DataError: there is nothing to read, a picture is damaged, or there are too few.
    """
    return ImageData(**_load(config, ("train", "validation", "test")))


def load_held_out(config: DataConfig) -> HeldOutImages:
    """Of the same split, what is held out alone.

    Raises:
        DataError: as `load_images`.
    """
    return HeldOutImages(**_load(config, ("validation", "test")))


def _load(config: DataConfig, names: Sequence[str]) -> dict[str, UInt8Array]:
    chosen = _split(config)
    read = sum(len(chosen[name][1]) for name in names)
    with tqdm(total=read, desc="reading images", unit="", leave=False, disable=None) as progress:
        return {name: _prepare_all(*chosen[name], config, progress) for name in names}


def _split(config: DataConfig) -> dict[str, tuple[Pictures, np.ndarray]]:
    """For train, validation and test the pictures, and which of them are meant."""
    splits = open_source(config.data)
    total = sum(len(pictures) for pictures in splits.values())
    if total < _FEWEST_IMAGES:
        raise DataError(
            f"data {config.data!r} has {total} images; training and held-out proof need {_FEWEST_IMAGES} or more"
        )
    order = np.random.Generator(np.random.Philox(config.split_seed)).permutation(len(splits["train"]))
    chosen: dict[str, tuple[Pictures, np.ndarray]] = {}
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


def _prepare_all(
    pictures: Pictures, indices: np.ndarray, config: DataConfig, progress: tqdm[None]
) -> UInt8Array:
    """uint8 [N, H, W, C] of the pictures at `indices`."""
    shape = (config.image_size, config.image_size, config.channels)
    images = np.empty((len(indices), *shape), np.uint8)

    def prepare_one(place: int) -> None:
        try:
            images[place] = prepare(pictures[int(indices[place])], *shape, config.preparation)
        except InvalidImageError as error:
            raise DataError(f"data {config.data!r}, {pictures.name(int(indices[place]))}: {error}") from None
        progress.update()

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # decoding and resizing release the interpreter lock
        for _ in pool.map(prepare_one, range(len(indices))):
            pass
    return images
