"""Converts log-likelihoods to bits per dimension, for training, export and scores."""

from __future__ import annotations

import math
from typing import Any, TypeVar

Values = TypeVar("Values")


def bits_per_dim(log_likelihood: Values, dimensions: int) -> Values:
    """-log_likelihood / (D ln 2), in the type, shape and precision of `log_likelihood`.

    Args:
        log_likelihood: of discrete images, in nats: a number, a NumPy array or a PyTorch tensor.
        dimensions: D, the number of values of one image.
    """
    nats: Any = log_likelihood
    bits: Values = nats / (-dimensions * math.log(2))
    return bits
