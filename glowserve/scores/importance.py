"""The log-likelihood from several draws of noise: the logarithm of their mean likelihood.

In expectation it is a lower bound of the log-likelihood, tighter with more draws (Burda et al. 2016,
arXiv:1509.00519, theorem 1).

Shapes: N images, M draws.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Float64Array = npt.NDArray[np.float64]


def log_mean_exp(
    draws: Sequence[npt.NDArray[np.float32]],
) -> tuple[npt.NDArray[np.bool_], Float64Array, Float64Array]:
    """Whether each image is finite, the logarithms of the mean likelihoods, and their standard errors; [N] each.

    The standard error is the delta method's: the standard deviation of the likelihoods, divided by their mean and by
    the square root of M. It is too small where a few draws outweigh the others.

    Args:
        draws: log-likelihoods in nats, M of [N], M at least 2. An image is finite if all of its draws are.
    """
    nats = np.stack(draws).astype(np.float64)  # [M, N]
    finite = np.asarray(np.isfinite(nats).all(axis=0))
    nats = np.where(finite, nats, 0.0)
    largest = nats.max(axis=0)
    likelihoods = np.exp(nats - largest)
    mean = likelihoods.mean(axis=0)
    error = likelihoods.std(axis=0, ddof=1) / mean / math.sqrt(len(nats))
    return finite, np.where(finite, largest + np.log(mean), -np.inf), np.where(finite, error, np.inf)
