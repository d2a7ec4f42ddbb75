"""How 1x1 convolutions are assembled."""

from __future__ import annotations

import numpy as np

from glowserve_export.convolution import Float64Array


def lu_product(
    *,
    permutation: Float64Array,
    lower: Float64Array,
    upper: Float64Array,
    sign: Float64Array,
    log_scale: Float64Array,
) -> Float64Array:
    """The matrix P L (U + diag(sign exp(log_scale))), [C, C].

    L has ones on its diagonal. Only the entries of `lower` below the diagonal and those of `upper` above it count: in a
    checkpoint the others are not zero.
    """
    unit = np.tril(lower, -1) + np.eye(len(lower))
    product: Float64Array = permutation @ unit @ (np.triu(upper, 1) + np.diag(sign * np.exp(log_scale)))
    return product
