"""What no checkpoint may hold, whoever trained it: weights that are not finite, matrices that cannot be inverted."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import Tensor

from glowserve_export.baked import Float64Array, condition_number
from glowserve_export.errors import NotInvertibleError

# Beyond this a float32 inverse has no correct digit left.
CONDITION_LIMIT = 1e6


def check_finite(weights: Mapping[str, Tensor]) -> None:
    """Raises NotInvertibleError with the name of the first weight that is not finite."""
    for name, tensor in weights.items():
        if not bool(tensor.isfinite().all()):
            raise NotInvertibleError(
                f"weight {name} is not finite; go back to a checkpoint before training diverged"
            )


def check_condition(matrix: Float64Array, what: str, remedy: str) -> None:
    """Raises NotInvertibleError if a matrix is singular or nearly so.

    Args:
        matrix: [C, C].
        what: it is called in the message, with its step before it.
        remedy: ends the message.
    """
    condition = condition_number(matrix) if np.isfinite(matrix).all() else np.inf
    if not condition < CONDITION_LIMIT:
        raise NotInvertibleError(
            f"{what} has condition number {condition:.3g}, and the bound is {CONDITION_LIMIT:.0e}: it is singular in "
            f"float32 and cannot be inverted. {remedy}"
        )
