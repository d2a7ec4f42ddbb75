"""Checks of what the graphs compute: values that do not come back, and numbers that are not finite.

Shapes: N images, H W C, D = H * W * C.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from glowserve.images import UInt8Array
from glowserve.runtime.engine import Float32Array, Reverse
from glowserve.runtime.errors import NotFiniteError

Int64Array = npt.NDArray[np.int64]


def mismatched_values(images: UInt8Array, decoded: Reverse, n_bits: int) -> Int64Array:
    """How many values of each image, [N], do not come back in their bin after encoding and decoding."""
    shift = 8 - n_bits
    # What is not finite has not come back, whatever byte the graph makes of it.
    wrong = ((images >> shift) != (decoded.image >> shift)) | ~np.isfinite(decoded.pixels)
    counts: Int64Array = wrong.sum(axis=(1, 2, 3))
    return counts


def require_finite_latents(latent: Float32Array) -> None:
    """Refuses encodings with NaN or infinity in them.

    Raises:
        NotFiniteError: the message names the first such image.
    """
    _require_finite(
        latent, "images: image {} lies so far from the model's data that its latent is not finite"
    )


def require_finite_images(decoded: Reverse, *, first: int = 0, what: str = "latents: row") -> None:
    """Refuses images that were made of NaN or infinity.

    Args:
        decoded: what the graph returned.
        first: index of its first row, for the message.
        what: what a row is called, for the message.

    Raises:
        NotFiniteError: the message names the first such image.
    """
    _require_finite(decoded.pixels, what + " {} does not decode to a finite image", first)


def _require_finite(array: Float32Array, message: str, first: int = 0) -> None:
    finite = np.isfinite(array).reshape(len(array), -1).all(axis=1)
    if not finite.all():
        raise NotFiniteError(message.format(first + int(np.argmin(finite))), int((~finite).sum()))
