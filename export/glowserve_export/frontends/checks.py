"""Checks of every checkpoint, whichever implementation trained it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import Tensor

from glowserve_export.convolution import Float64Array
from glowserve_export.errors import NotInvertibleError
from glowserve_export.folded import condition_number

# A float32 inverse of a matrix with a larger condition number has no correct digit.
CONDITION_LIMIT = 1e6


def check_finite(weights: Mapping[str, Tensor]) -> None:
    """Raises NotInvertibleError with the name of the first weight that is not finite."""
    for name, tensor in weights.items():
        if not bool(tensor.isfinite().all()):
            raise NotInvertibleError(
                f"weight {name} is not finite; export an earlier checkpoint, from before training diverged"
            )


def check_condition(matrix: Float64Array, what: str, remedy: str) -> None:
    """Raises NotInvertibleError if a matrix is singular or nearly so.

    Args:
        matrix: [C, C].
        what: the step and the name of the matrix, which begin the message.
        remedy: a sentence that ends the message.
    """
    condition = condition_number(matrix) if np.isfinite(matrix).all() else np.inf
    if not condition < CONDITION_LIMIT:
        raise NotInvertibleError(
            f"{what} has condition number {condition:.3g}, and the bound is {CONDITION_LIMIT:.0e}: it is singular in "
            f"float32 and cannot be inverted. {remedy}"
        )
