"""Does a set of images, as a whole, come from the distribution of the calibration images?

A permutation test: if the images of the set are exchangeable with the calibration images, the two differ no more than
they would after any exchange of images between them (Fisher 1935; for random exchanges, with p-values that are never 0,
Phipson and Smyth 2010, arXiv:1603.05766). p-values of single images share their calibration, and must not be combined
as if they were independent (Bates et al. 2021, arXiv:2104.08279). Rows that are permuted together have no such flaw.

The difference is the maximum mean discrepancy (Gretton et al. 2012, JMLR 13) with the kernel (1 + x . y / F)^2, like
that of the kernel inception distance (Binkowski et al. 2018, arXiv:1801.01401, of degree 3): it sees shifts of means,
of spreads and of correlations. It is a distance of means of an explicit embedding, so that the cost of an exchange
grows with the images of the smaller group alone. x and y are normal scores: whatever the distribution of the features,
tests of shifts lose nothing by them (Chernoff and Savage 1958), and no image counts for more than its rank.

Shapes: m images of the set, n calibration images, N = m + n, f fitting images, F features, E dimensions of the
embedding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from glowserve.scores.parts import FEATURES

Float64Array = npt.NDArray[np.float64]

EXCHANGES = 9_999
"""B: with random exchanges, no p-value is below 1 / (B + 1)."""

MAX_IMAGES = 100_000
"""The most images of a set."""

FEWEST_IMAGES = 2
"""The fewest images of a set."""

# More calibration images would make a p-value more costly, and hardly sharper.
_MOST_CALIBRATION_IMAGES = 4_000
_SEED = 0
# Part of the variance of a feature that is added to it, so that few fitting images have a covariance, too.
_RIDGE = 1e-4
# Of one call of `run`: exchanges, and rows that are summed in all of them.
_MOST_EXCHANGES, _MOST_ROWS = 4096, 2**18
# Sums of the same rows differ by their order.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class FeatureDifference:
    """How a feature of the images of a set differs from that of the calibration images."""

    name: str
    """What the feature is."""

    shift: float
    """The difference of the means in standard deviations of the calibration images; above 0 if the set's is higher."""

    spread: float
    """The standard deviation of the set divided by that of the calibration images."""


class SetTest:
    """The test of one set. It is computed in parts, so that no other work waits for long.

    An image that is not finite ranks last in everything. Whatever is computed from rows is a function of all of them,
    whichever group they belong to, or of the fitting images, which are in neither.

    Args:
        features: of the set, [m, F], m at least 1.
        calibration: of the calibration images, [n, F], n at least 1. The first 4,000 count.
        fitting: of the fitting images, [f, F], f at least 1; finite.
    """

    def __init__(self, features: Float64Array, calibration: Float64Array, fitting: Float64Array) -> None:
        calibration = calibration[:_MOST_CALIBRATION_IMAGES]
        m, n = len(features), len(calibration)
        self.calibration_images = n
        """How many calibration images count."""
        splits = math.comb(m + n, m) // (2 if m == n else 1)  # two halves may change places
        self.resolution = 1 / min(EXCHANGES + 1, splits)
        """The smallest p-value that is possible with so many images."""
        rows = np.concatenate([features, calibration])
        rows[~np.isfinite(rows).all(axis=1)] = np.inf
        order = np.lexsort(rows.T)
        embedded = _embedding(_normal_scores(_whitened(rows[order], fitting)))
        self._embedded = np.ascontiguousarray((embedded - embedded.mean(axis=0)).T)  # [E, N]
        # Since the sum over all rows is 0, that over one group tells that over the other: the smaller one is summed.
        self._smaller = min(m, n)
        in_smaller = (order < m) if m <= n else (order >= m)
        self._difference = float(np.square(self._embedded[:, in_smaller].sum(axis=1)).sum())
        self._random = np.random.Generator(np.random.Philox(key=_SEED))
        self._exchanges = self._at_least = 0

    def run(self) -> bool:
        """Computes a part of the exchanges, for some hundredths of a second; whether all are done."""
        part = max(1, min(_MOST_EXCHANGES, _MOST_ROWS // self._smaller))
        differences = self._exchanged(min(part, EXCHANGES - self._exchanges))
        self._at_least += int((differences >= self._difference * (1 - _ROUNDING)).sum())
        self._exchanges += len(differences)
        return self._exchanges == EXCHANGES

    @property
    def p_value(self) -> float:
        """(1 + k) / (B + 1), where k of B exchanges leave a difference that is at least as large."""
        return (1 + self._at_least) / (self._exchanges + 1)

    def _exchanged(self, count: int) -> Float64Array:
        """The differences after so many random exchanges, [count]."""
        rows = np.stack(
            [
                self._random.choice(self._embedded.shape[1], self._smaller, replace=False, shuffle=False)
                for _ in range(count)
            ]
        )
        # One dimension after the other: gathering whole rows takes several times as long.
        squares = [np.square(values[rows].sum(axis=1)) for values in self._embedded]
        differences: Float64Array = np.sum(squares, axis=0)
        return differences


def differences(features: Float64Array, calibration: Float64Array) -> tuple[FeatureDifference, ...]:
    """How the features of a set differ from those of calibration images; none if no image of the set is finite.

    Args:
        features: of the set, [m, F]. Images that are not finite are left out.
        calibration: of the calibration images, [n, F], n at least 1; finite.
    """
    finite = features[np.isfinite(features).all(axis=1)]
    if not len(finite):
        return ()
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        scale = calibration.std(axis=0)
        shifts = (finite.mean(axis=0) - calibration.mean(axis=0)) / scale
        spreads = finite.std(axis=0) / scale
    alike = (
        np.isnan(shifts),
        np.isnan(spreads),
    )  # 0 / 0: such as the complexity of images that are all the same
    shifts, spreads = np.where(alike[0], 0.0, shifts), np.where(alike[1], 1.0, spreads)
    return tuple(
        FeatureDifference(name, shift, spread)
        for name, shift, spread in zip(FEATURES, shifts.tolist(), spreads.tolist(), strict=True)
    )


def _whitened(rows: Float64Array, fitting: Float64Array) -> Float64Array:
    """Sorted rows, [N, F], in coordinates in which the fitting images are uncorrelated and have variance 1."""
    centre, scale = fitting.mean(axis=0), fitting.std(axis=0)
    scale = np.where(scale > 1e-6, scale, 1e-6)  # such as the complexity of images that are all alike
    standard = (fitting - centre) / scale
    covariance = standard.T @ standard / len(fitting) + _RIDGE * np.eye(len(centre))
    variances, axes = np.linalg.eigh(covariance)
    # Rows that are alike stay so: products of matrices round by place.
    distinct = np.append(True, (rows[1:] != rows[:-1]).any(axis=1))
    with np.errstate(over="ignore", invalid="ignore"):
        whitened = (rows[distinct] - centre) / scale @ (axes / np.sqrt(variances))
    whitened[~np.isfinite(whitened).all(axis=1)] = np.inf
    each: Float64Array = whitened[np.cumsum(distinct) - 1]
    return each


def _normal_scores(rows: Float64Array) -> Float64Array:
    """The quantile of a normal distribution to which each value of a column has its rank (van der Waerden), [N, F].

    Values that are alike have the mean of their ranks.
    """
    n = len(rows)
    quantiles = [NormalDist().inv_cdf(rank / (n + 1)) for rank in range(1, n + 1)]
    scores = np.empty_like(rows)
    for column, values in enumerate(rows.T):
        _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
        ranks = np.cumsum(counts) - (counts - 1) / 2
        scores[:, column] = np.interp(ranks, np.arange(1, n + 1), quantiles)[places]
    return scores


def _embedding(rows: Float64Array) -> Float64Array:
    """The embedding of F^2 (1 + x . y / F)^2 without its constant: [N, F] to [N, E], E = F + F (F + 1) / 2."""
    features = rows.shape[1]
    first, second = np.triu_indices(features)
    weights = np.where(first == second, 1.0, math.sqrt(2))
    products = weights * rows[:, first] * rows[:, second]
    return np.concatenate([math.sqrt(2 * features) * rows, products], axis=1)
