"""Checks that the outputs of the graphs are finite.

Shapes: N images, D values each.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from glowserve.runtime.engine import Float32Array, Reverse
from glowserve.runtime.errors import NotFiniteError

BoolArray = npt.NDArray[np.bool_]


def require_finite_latents(
    latent: Float32Array,
    message: str = "images: image {} lies so far from the model's data that its latent is not finite",
) -> None:
    """Checks that latents [N, D] are finite.

    Args:
        latent: the latents.
        message: of the error, with a place for the index of the first that is not.

    Raises:
        NotFiniteError: a latent has NaN or infinity.
    """
    _require(_finite_rows(latent), message)


def finite_images(decoded: Reverse) -> BoolArray:
    """Whether each of N decoded images is finite, [N]: whether all of its pixels are, before rounding and clipping.

    A value that is merely far outside the range of a pixel is finite. See `Reverse.pixels` for what a graph promises.
    """
    return _finite_rows(decoded.pixels)


def require_finite_images(decoded: Reverse, *, what: str = "latents: row") -> None:
    """Checks that decoded images are finite.

    Args:
        decoded: the output of the reverse graph, N rows.
        what: the name of a row, for the message.

    Raises:
        NotFiniteError: an image has NaN or infinity; the message names the first such row.
    """
    _require(finite_images(decoded), what + " {} does not decode to a finite image")


def _finite_rows(array: Float32Array) -> BoolArray:
    return np.asarray(np.isfinite(array).reshape(len(array), -1).all(axis=1))


def _require(finite: BoolArray, message: str) -> None:
    if not finite.all():
        raise NotFiniteError(message.format(int(np.argmin(finite))), int((~finite).sum()))
