"""Images of a source that are not split: a set to measure a model on."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from glowserve.cores import cores
from glowserve.images import InvalidImageError, UInt8Array
from glowserve_training.config import DataConfig
from glowserve_training.data.parallel import prepare_in_parallel
from glowserve_training.data.sources import open_source
from glowserve_training.data.unreadable import UnreadableImages
from glowserve_training.errors import DataError


@dataclass(frozen=True)
class ImageSet:
    """Some images of a source."""

    images: UInt8Array
    """uint8 [N, H, W, C]."""

    total: int
    """The images of the source."""


def load_set(config: DataConfig, most: int) -> ImageSet:
    """Reads and prepares images of a source, whatever splits it has.

    Unreadable images are skipped, and reported in one line on stderr.

    Args:
        config: the images, their shape and their preparation.
        most: how many to read, spread evenly over the source.

    Raises:
        DataError: there is no such file or folder, it has no images, or more than 1 in 10 of them are unreadable.
    """
    if not Path(config.data).exists():  # else it would be looked for on the Hugging Face hub
        raise DataError(f"data {config.data!r}: there is no such file or folder")
    splits = list(open_source(config.data).values())
    ends = np.cumsum([len(split) for split in splits])
    total = int(ends[-1])
    chosen = np.linspace(0, total - 1, min(total, most)).round().astype(int)
    wanted = []
    for index, split in zip(chosen, np.searchsorted(ends, chosen, side="right"), strict=True):
        wanted.append((splits[split], int(index - ends[split] + len(splits[split]))))
    images, unreadable = [], UnreadableImages()
    with ThreadPoolExecutor(cores()) as pool:
        for (source, index), image in zip(wanted, prepare_in_parallel(wanted, config, pool), strict=True):
            if isinstance(image, InvalidImageError):
                unreadable.add(source.name(index), image)
            else:
                images.append(image)
    unreadable.check(config.data, len(wanted), len(wanted))
    unreadable.report(len(wanted))
    if not images:
        raise DataError(f"data {config.data!r}: no image can be read: {unreadable}; repair them")
    return ImageSet(np.stack(images), total)
