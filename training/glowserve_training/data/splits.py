"""Which images of a source are for training, validation, calibration and test."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from glowserve.output import counted
from glowserve_training.config import DataConfig
from glowserve_training.data.source_images import SourceImages
from glowserve_training.data.sources import Source
from glowserve_training.errors import TooFewImagesError

# Fewer images are too few to train on and to hold some out, or to calibrate with and to hold some out.
_FEWEST_IMAGES = 50
# Where the source has no such splits, one image in this many is held out for test, and one for validation and
# calibration together, which share them equally: half of a folder's twelve images rank its weights, and six percentiles
# that are honest are worth more than twelve that are not.
_HELD_OUT_ONE_IN = 10
# With more held-out images evaluation takes longer, and its standard error is small already. 4,000 scores tell one
# thousandth from the next.
_MOST_HELD_OUT = {"test": 1000, "validation": 1000, "calibration": 4000}
# Of images that no model was trained on, one in this many is for test, and one for validation. The others calibrate.
_UNSEEN_ONE_IN = 4

Split = tuple[SourceImages, npt.NDArray[np.int64]]
"""Images of a source, and the indices of those that belong to the split, in the split's order."""


def choose_splits(source: Source, config: DataConfig) -> dict[str, Split]:
    """The splits "test", "validation", "calibration" and "train", a function of the source's order and `split_seed`.

    A split of the source's own is used; its validation images are also those to calibrate with. The splits of version
    1 are without "calibration".

    Raises:
        TooFewImagesError: the source has too few images.
    """
    total = sum(len(images) for images in source.values())
    if total < _FEWEST_IMAGES:
        raise TooFewImagesError(
            f"data {config.data!r} has {counted(total, 'image')}; training and held-out images need "
            f"{_FEWEST_IMAGES} or more"
        )
    order = _permutation(config, len(source["train"]))
    tenth = len(order) // _HELD_OUT_ONE_IN
    splits: dict[str, Split] = {}
    for name, parts in (("test", ("test",)), ("validation", _chosen_from_validation(config))):
        own = name in source
        images = _permutation(config, len(source[name])) if own else order[:tenth]
        taken = 0
        for part, share in zip(parts, _shares(len(images), parts), strict=True):
            splits[part] = (source[name if own else "train"], images[taken : taken + share])
            taken += share
        order = order if own else order[taken:]
    splits["train"] = (source["train"], order)
    for name, (_, indices) in splits.items():
        if not len(indices):
            sizes = ", ".join(f"{len(images)} for {split}" for split, images in source.items())
            raise TooFewImagesError(
                f"data {config.data!r} leaves no images for {name}: it has {sizes}; add images, or a split {name!r}"
            )
    return splits


def split_unseen(source: Source, config: DataConfig) -> dict[str, Split]:
    """The splits "calibration", "validation" and "test" of images that the model was not trained on, by `split_seed`.

    A quarter is for validation and a quarter for test, of each at most 1,000. The others, at most 4,000, calibrate.

    Of a source with splits of its own only the test images are used, or the validation images if it has no test images:
    the model may be somebody else's, trained on the training images.

    Raises:
        TooFewImagesError: there are too few.
    """
    name = next(name for name in ("test", "validation", "train") if name in source)
    images, own = source[name], len(source) > 1
    if len(images) < _FEWEST_IMAGES:
        found = counted(len(images), f"{name} image" if own else "image")
        only = ", and its others are not used" if own else ""
        raise TooFewImagesError(
            f"data {config.data!r} has {found}{only}; to calibrate and to test takes {_FEWEST_IMAGES} or more: give a "
            "folder of more images that the model was not trained on"
        )
    sizes = {
        part: min(len(images) // _UNSEEN_ONE_IN, _MOST_HELD_OUT[part]) for part in ("validation", "test")
    }
    calibration = min(len(images) - sum(sizes.values()), _MOST_HELD_OUT["calibration"])
    # From the other end than in training, so that the first calibration images tell one rule from the other.
    order, splits = _permutation(config, len(images))[::-1], {}
    for part, size in ({"calibration": calibration} | sizes).items():
        splits[part], order = (images, order[:size]), order[size:]
    return splits


def spread_evenly(images: Split, most: int) -> list[int]:
    """The indices of at most so many images of a split, spread evenly over their source; the same ones each time."""
    indices = np.sort(images[1])
    chosen = np.linspace(0, len(indices) - 1, min(len(indices), most)).round().astype(int)
    return [int(index) for index in indices[chosen]]


def _chosen_from_validation(config: DataConfig) -> tuple[str, ...]:
    """The splits that share the validation images."""
    return ("validation",) if config.split_version == 1 else ("validation", "calibration")


def _shares(images: int, parts: Sequence[str]) -> list[int]:
    """How many of the images each part gets: equal numbers, or what another's limit leaves to it."""
    shares: list[int] = []
    for i, part in enumerate(parts):
        share = min(_MOST_HELD_OUT[part], (images - sum(shares)) // (len(parts) - i))
        shares.append(share)
    return shares


def _permutation(config: DataConfig, n: int) -> npt.NDArray[np.int64]:
    return np.random.Generator(np.random.Philox(config.split_seed)).permutation(n)
