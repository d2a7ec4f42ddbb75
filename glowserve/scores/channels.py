"""The channels of an image's latents: the mean of each, and how far it is spread.

The latents of held-out images are about standard normal all together, and yet no channel is so by itself: its mean may
tell light edges from dark ones, and its energy is one of a direction and a scale.

Shapes: N images, D latents of an image, L levels, Q channels.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Float64Array = npt.NDArray[np.float64]

# Levels above these have many channels of few latents each, whose noise hides what the others tell.
_LEVELS = 2
_LEAST_ENERGY = 1e-6


def channel_statistics(
    latent: npt.NDArray[np.float32], shape: tuple[int, int, int], levels: int
) -> Float64Array:
    """The mean of each channel and the logarithm of its mean square, of the two levels nearest to the pixels, [N, 2 Q].

    Args:
        latent: [N, D], level 1 first; a level's latents are in the order [channels, rows, columns].
        shape: H, W and C of the images.
        levels: L of the model.
    """
    height, width, _ = shape
    found, first = list[Float64Array](), 0
    for level, count in enumerate(_channels(shape[2], levels), 1):
        positions = (height >> level) * (width >> level)
        rows = latent[:, first : first + count * positions].reshape(-1, count, positions).astype(np.float64)
        first += count * positions
        with np.errstate(invalid="ignore"):  # latents may be infinite with opposite signs
            found += [rows.mean(axis=2), np.log(np.square(rows).mean(axis=2) + _LEAST_ENERGY)]
    return np.concatenate(found, axis=1)


def statistics_width(channels: int, levels: int) -> int:
    """2 Q."""
    return 2 * sum(_channels(channels, levels))


def _channels(channels: int, levels: int) -> list[int]:
    """The channels of the latents of each level: half of what a level computes, and at the top all of it."""
    return [channels * 2 ** (level + (level == levels)) for level in range(1, min(levels, _LEVELS) + 1)]
