"""Checks the outputs of the graphs: round trips that change values, and values that are not finite.

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
    """How many values of each image are in another bin after encoding and decoding, [N].

    Args:
        images: uint8 [N, H, W, C].
        decoded: the output of the reverse graph for the images' latents.
        n_bits: the model's bits per value; an image has 2^n_bits bins.
    """
    shift = 8 - n_bits
    # A pixel that is not finite is a mismatch, whatever byte the graph rounds it to.
    wrong = ((images >> shift) != (decoded.image >> shift)) | ~np.isfinite(decoded.pixels)
    counts: Int64Array = wrong.sum(axis=(1, 2, 3))
    return counts


def require_finite_latents(latent: Float32Array) -> None:
    """Checks that latents [N, D] are finite.

    Raises:
        NotFiniteError: a latent has NaN or infinity; the message names the first such image.
    """
    _require_finite(
        latent, "images: image {} lies so far from the model's data that its latent is not finite"
    )


def require_finite_images(decoded: Reverse, *, first: int = 0, what: str = "latents: row") -> None:
    """Checks that decoded images are finite.

    Args:
        decoded: the output of the reverse graph, N rows.
        first: the index of the first row, for the message.
        what: the name of a row, for the message.

    Raises:
        NotFiniteError: an image has NaN or infinity; the message names the first such row.
    """
    _require_finite(decoded.pixels, what + " {} does not decode to a finite image", first)


def _require_finite(array: Float32Array, message: str, first: int = 0) -> None:
    finite = np.isfinite(array).reshape(len(array), -1).all(axis=1)
    if not finite.all():
        raise NotFiniteError(message.format(first + int(np.argmin(finite))), int((~finite).sum()))
