"""How many images an export runs, and in what batches: fewer for larger models, so that an export ends.

The work is counted in arithmetic operations and not timed: the same model runs the same images everywhere.
"""

from __future__ import annotations

from collections.abc import Iterator

from tqdm import tqdm

from glowserve_export.folded import FoldedGlow

# Operations of the forward graph. On two CPU cores, each budget takes a minute or two.
_VERIFICATION_OPERATIONS = 10**12
_PERCENTILE_OPERATIONS = 10**13
_INT8_LOSS_OPERATIONS = 10**13
# Errors hardly differ between images.
_VERIFICATION_IMAGES = (4, 128)
# A hundred images tell one percentile from the next.
_PERCENTILE_IMAGES = 100
_INT8_LOSS_IMAGES = (4, 128)
# Hidden activations of one batch, in bytes: what the processor's cache can hold is no slower in larger batches.
_BATCH_BYTES = 2**26
_MAX_BATCH = 32


def verification_images(operations: int) -> int:
    """The number of held-out images to verify a bundle on, 4 to 128.

    Args:
        operations: of the forward graph for one image.
    """
    return _within(_VERIFICATION_OPERATIONS, operations, *_VERIFICATION_IMAGES)


def percentile_images(operations: int, available: int) -> int:
    """The number of held-out images to compute percentiles from: all that are available, or 100 and more of them.

    Args:
        operations: of the forward graph for one image.
        available: the number of images.
    """
    return _within(_PERCENTILE_OPERATIONS, operations, min(_PERCENTILE_IMAGES, available), available)


def int8_loss_images(operations: int, networks: int) -> int:
    """The number of images to measure the loss of each quantized network on, 4 to 128.

    Args:
        operations: of the forward graph for one image.
        networks: the number of coupling networks.
    """
    return _within(_INT8_LOSS_OPERATIONS, operations * networks, *_INT8_LOSS_IMAGES)


def batch_size(glow: FoldedGlow, bytes_per_value: int = 4) -> int:
    """The number of images in one run, 1 to 32: large images have large activations."""
    hidden = max(each.size.pixels * each.coupling.network.first.outputs for each in glow.all_couplings())
    image = hidden * bytes_per_value
    return max(1, min(_MAX_BATCH, _BATCH_BYTES // image))


def batches(images: int, size: int, doing: str) -> Iterator[slice]:
    """The slices of batches of at most `size` images. A progress bar says what is `doing`, if stderr is a terminal."""
    with tqdm(total=images, desc=doing, unit="", disable=None, leave=False) as bar:
        for batch in slices(images, size):
            yield batch
            bar.update(batch.stop - batch.start)


def slices(images: int, size: int) -> Iterator[slice]:
    """The slices of batches of at most `size` images."""
    for first in range(0, images, size):
        yield slice(first, min(first + size, images))


def _within(budget: int, operations: int, fewest: int, most: int) -> int:
    return max(fewest, min(most, budget // max(operations, 1)))
