"""Checks that the outputs of the graphs are finite.

Shapes: N images, D values each.
"""

from __future__ import annotations

import numpy as np

from glowserve.runtime.engine import Float32Array, Reverse
from glowserve.runtime.errors import NotFiniteError


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
