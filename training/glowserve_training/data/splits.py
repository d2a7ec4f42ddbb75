"""Which images of a source are for training, validation and test."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from glowserve_training.config import DataConfig
from glowserve_training.data.source_images import SourceImages
from glowserve_training.data.sources import Source
from glowserve_training.errors import DataError

# Fewer images are too few to train on and to hold some out.
_FEWEST_IMAGES = 50
# For validation, and again for test, one image in this many is held out, where the source has no such splits.
_HELD_OUT_ONE_IN = 10
# With more held-out images evaluation takes longer, and its standard error is small already.
_MOST_HELD_OUT = 1000

Split = tuple[SourceImages, npt.NDArray[np.int64]]
"""Images of a source, and the indices of those that belong to the split, in the split's order."""


def choose_splits(source: Source, config: DataConfig) -> dict[str, Split]:
    """The splits "test", "validation" and "train", as a function of the source's order and `split_seed`.

    A split of the source's own is used; of validation and test, at most 1,000 images.

    Raises:
        DataError: the source has too few images.
    """
    total = sum(len(images) for images in source.values())
    if total < _FEWEST_IMAGES:
        raise DataError(
            f"data {config.data!r} has {total} images; training and held-out images need {_FEWEST_IMAGES} or more"
        )
    order = _permutation(config, len(source["train"]))
    splits: dict[str, Split] = {}
    for name in ("test", "validation"):
        if name in source:
            splits[name] = (source[name], _permutation(config, len(source[name]))[:_MOST_HELD_OUT])
        else:
            held_out = min(_MOST_HELD_OUT, len(source["train"]) // _HELD_OUT_ONE_IN)
            splits[name] = (source["train"], order[:held_out])
            order = order[held_out:]
    splits["train"] = (source["train"], order)
    for name, (_, indices) in splits.items():
        if not len(indices):
            sizes = ", ".join(f"{len(images)} for {split}" for split, images in source.items())
            raise DataError(
                f"data {config.data!r} leaves no images for {name}: it has {sizes}; add images, or a split {name!r}"
            )
    return splits


def _permutation(config: DataConfig, n: int) -> npt.NDArray[np.int64]:
    return np.random.Generator(np.random.Philox(config.split_seed)).permutation(n)
