"""The contrasts of an image: how much neighbouring pixels, and ever larger squares of them, differ.

They are the energies of a Haar wavelet transform by scale, direction and colour, which describe textures (Mallat, "A
theory for multiresolution signal decomposition", IEEE PAMI 11, 1989). They know nothing of a model, and take a small
part of the time of a compressed file.

Shapes: N images, H W C, P planes, S contrasts.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from glowserve.images import UInt8Array

Float64Array = npt.NDArray[np.float64]

# Added to each energy, in squared bins: what rounding adds to the mean of four values.
_FLOOR = 1 / 48
# Values that are transformed at once: they fit in a core's cache.
_MOST_VALUES = 2**17


def contrasts(images: UInt8Array, n_bits: int, levels: int) -> Float64Array:
    """The logarithm of each mean squared difference, in bins, [N, S]; S is `width`. The finest scale comes first.

    Args:
        images: uint8 [N, H, W, C]; 2^levels divides H and W.
        n_bits: the model's bits of each value. The differences are those of its quantization bins.
        levels: how many scales there are.
    """
    step = max(1, _MOST_VALUES // images[0].size)
    parts = [images[first : first + step] for first in range(0, len(images), step)]
    return np.concatenate([_contrasts(part >> np.uint8(8 - n_bits), levels) for part in parts])


def width(channels: int, levels: int) -> int:
    """S: each plane has three directions at each scale, and the variance of what is left."""
    return channels * (3 * levels + 1)


def _contrasts(bins: UInt8Array, levels: int) -> Float64Array:
    rest, energies = _planes(bins), list[Float64Array]()
    for _ in range(levels):
        left, right = rest[..., ::2], rest[..., 1::2]
        sums, differences = left + right, left - right
        energies += [
            _mean_square(differences[..., ::2, :] + differences[..., 1::2, :]) / 16,
            _mean_square(sums[..., ::2, :] - sums[..., 1::2, :]) / 16,
            _mean_square(differences[..., ::2, :] - differences[..., 1::2, :]) / 16,
        ]
        rest = (sums[..., ::2, :] + sums[..., 1::2, :]) / 4
    energies.append(_mean_square(rest - rest.mean(axis=(2, 3), keepdims=True)))
    return np.log(np.concatenate(energies, axis=1) + _FLOOR)


def _planes(bins: UInt8Array) -> Float64Array:
    """The brightness and two differences of colours, or the channels where they are not three, [N, P, H, W]; P = C."""
    values = np.moveaxis(bins, 3, 1).astype(np.float64)
    if values.shape[1] != 3:
        return values
    red, green, blue = values[:, 0], values[:, 1], values[:, 2]
    return np.stack([(red + green + blue) / 3, red - blue, green - (red + blue) / 2], axis=1)


def _mean_square(values: Float64Array) -> Float64Array:
    """Of [N, P, H, W], [N, P]. Each row is added by itself, so that it does not depend on N."""
    energies: Float64Array = np.square(values).reshape(*values.shape[:2], -1).mean(axis=2)
    return energies
