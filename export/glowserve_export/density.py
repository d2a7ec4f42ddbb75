"""Fits what the oddness of an image is computed with: see `glowserve.scores.density`.

Shapes: N images, S contrasts, F numbers of a part.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from glowserve.likelihood import bits_per_dim
from glowserve.scores.density import STATISTICS, Density, Gaussian, by_level
from glowserve.scores.parts import Parts

Float64Array = npt.NDArray[np.float64]

# Added to each variance, in units of the numbers' own. More is added with few images, since they hardly know their own
# covariance.
_RIDGE = 0.3
# The same, of the regression.
_REGRESSION_RIDGE = 0.01
# Of numbers that are alike for all images.
_LEAST_SCALE = 1e-6
_TAIL = 0.95


def fit_density(parts: Parts, dimensions: int) -> Density:
    """Fits the parts of fitting images, one or more; all are finite.

    Args:
        parts: of the images.
        dimensions: D.
    """
    bits = bits_per_dim(parts.log_likelihood, dimensions)
    fitted = Density(
        levels=_gaussian(by_level(parts)),
        channels=_gaussian(parts.channels),
        contrasts=_gaussian(parts.contrasts),
        bits=np.asarray(bits.mean()),
        bits_by_contrast=_regression(parts.contrasts, bits),
        median=np.zeros(STATISTICS),
        scale=np.ones(STATISTICS),
    )
    median, tail = np.quantile(fitted.statistics(parts, dimensions), (0.5, _TAIL), axis=0)
    scale = (tail - median) / math.log(_TAIL / (1 - _TAIL))
    return replace(fitted, median=median, scale=np.maximum(scale, _LEAST_SCALE))


def _gaussian(values: Float64Array) -> Gaussian:
    """The Gaussian of values, [N, F], whose covariance is shrunk towards its diagonal."""
    mean, scale, standard = _standard(values)
    covariance = standard.T @ standard / len(values) + _ridge(_RIDGE, values)
    # With lower triangular C C^T the covariance, (x - mean) / scale times C^-T is standard normal.
    root = np.linalg.cholesky(covariance)
    return Gaussian(mean=mean, whitening=np.linalg.inv(root).T / scale[:, None])


def _regression(values: Float64Array, targets: Float64Array) -> Float64Array:
    """The slopes, [F], of the ridge regression of targets, [N], on values, [N, F], both from their means."""
    _, scale, standard = _standard(values)
    covariance = standard.T @ standard / len(values) + _ridge(_REGRESSION_RIDGE, values)
    slopes: Float64Array = np.linalg.solve(covariance, standard.T @ (targets - targets.mean()) / len(values))
    return slopes / scale


def _standard(values: Float64Array) -> tuple[Float64Array, Float64Array, Float64Array]:
    """The mean and the scale of values, [N, F], and the values in these units."""
    mean = values.mean(axis=0)
    scale = np.maximum(values.std(axis=0), _LEAST_SCALE)
    return mean, scale, (values - mean) / scale


def _ridge(least: float, values: Float64Array) -> Float64Array:
    n, width = values.shape
    ridge: Float64Array = (least + width / n) * np.eye(width)
    return ridge
