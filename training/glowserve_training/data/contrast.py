"""How much of a source is exactly black or white, as in drawings and scans and hardly in photographs."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from glowserve.cores import cores
from glowserve.images import InvalidImageError
from glowserve_training.config import DataConfig
from glowserve_training.data.parallel import prepare_in_parallel
from glowserve_training.data.splits import Split, spread_evenly

# The share is known to a few percent of itself after some tens of images.
_MOST_IMAGES = 64


def black_or_white(split: Split, config: DataConfig) -> float:
    """The share of values that are exactly 0 or 255 in prepared images, 0 to 1: of 64 images of a split.

    Images that cannot be read do not count; with none that can, the share is 0.

    Raises:
        DataError: a file cannot be read now.
    """
    images, indices = split[0], spread_evenly(split, _MOST_IMAGES)
    with ThreadPoolExecutor(cores()) as pool:
        found = [
            np.isin(image, (0, 255)).mean()
            for image in prepare_in_parallel(((images, index) for index in indices), config, pool)
            if not isinstance(image, InvalidImageError)
        ]
    return float(np.mean(found)) if found else 0.0
