"""Bits per dimension: the one place that knows the formula."""

from __future__ import annotations

import math
from typing import Any, TypeVar

Values = TypeVar("Values")


def bits_per_dim(log_likelihood: Values, dimensions: int) -> Values:
    """Nats of discrete images to bits per dimension: -log_likelihood / (D ln 2).

    Args:
        log_likelihood: nats: a number, a NumPy array or a Torch tensor, in the precision that the result shall have.
        dimensions: D, values of one image.
    """
    nats: Any = log_likelihood
    bits: Values = nats / (-dimensions * math.log(2))
    return bits
