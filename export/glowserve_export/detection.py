"""How well a score separates out-of-distribution images from held-out ones: AUROC, AUPR, FPR at 95 % TPR.

Out-of-distribution images are the positive class (Hendrycks et al. 2019, arXiv:1812.04606), and an image is flagged
where its oddness reaches a threshold. The two samples count alike, whatever their sizes: chance is AUPR 0.5.

Intervals of 95 % come from a Bayesian bootstrap of both samples (Rubin 1981) in which each sample has one image more,
that nobody saw: at the wrong end for the pessimistic limit, at the right end for the optimistic one. For a proportion
that is the interval of Clopper and Pearson (1934); for a mean it is the bound of Learned-Miller and Thomas (2019,
arXiv:1905.06208). Unlike DeLong's interval and the plain bootstrap it serves all three figures, and does not shrink to
a point where sixteen images happen to be separated without an error. The samples are taken to be independent.

Shapes: N held-out images, M out-of-distribution images, B draws, G different values.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Float64Array = npt.NDArray[np.float64]

_DRAWS = 1000
_TAIL = 0.025
_TPR = 0.95
# Sums of weights are rounded.
_ROUNDING = 1e-9
# Values of the arrays of one run.
_MOST_VALUES = 2**21


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval."""

    value: float
    """The figure of the images at hand."""

    low: float
    """The lower limit."""

    high: float
    """The upper limit."""


@dataclass(frozen=True, kw_only=True)
class Separation:
    """How well a score separates two samples."""

    auroc: Estimate
    """The probability that an out-of-distribution image is odder than a held-out one; ties count half."""

    aupr: Estimate
    """Average precision: the mean, over out-of-distribution images, of the share of them among all that are flagged
    when the threshold is at that image."""

    fpr: Estimate
    """The share of held-out images that are flagged with the highest threshold that finds 95 % of the others."""


def separation(held_out: npt.ArrayLike, out: npt.ArrayLike) -> Separation:
    """Measures a score. The intervals are the same in every run.

    Args:
        held_out: the oddness of the held-out images, [N]; higher is odder, and infinity is allowed.
        out: the oddness of the out-of-distribution images, [M].

    Raises:
        ValueError: a sample is empty, or a value is NaN.
    """
    samples = [np.asarray(each, np.float64) for each in (held_out, out)]
    for name, sample in zip(("held_out", "out"), samples, strict=True):
        if not sample.size or np.isnan(sample).any():
            raise ValueError(f"{name} has {sample.size} values, {np.isnan(sample).sum()} of them NaN")
    # Ranks, so that there is a place beyond infinity.
    values, ranks = np.unique(np.concatenate(samples), return_inverse=True)
    ours, theirs = ranks[: samples[0].size], ranks[samples[0].size :]
    below, above = -1, len(values)
    plain = _figures(ours, theirs, np.ones((1, len(ours))), np.ones((1, len(theirs))))[0]
    bad, good = [], []
    for weights in _weights(len(ours), len(theirs)):
        bad.append(_figures(np.append(ours, above), np.append(theirs, below), *weights))
        good.append(_figures(np.append(ours, below), np.append(theirs, above), *weights))
    worst, best = np.concatenate(bad), np.concatenate(good)
    low, high = np.quantile(worst, _TAIL, axis=0), np.quantile(best, 1 - _TAIL, axis=0)
    low[2], high[2] = np.quantile(best[:, 2], _TAIL), np.quantile(worst[:, 2], 1 - _TAIL)  # less is better
    auroc, aupr, fpr = (
        Estimate(float(value), float(min(value, a)), float(max(value, b)))
        for value, a, b in zip(plain, low, high, strict=True)
    )
    return Separation(auroc=auroc, aupr=aupr, fpr=fpr)


def auroc(held_out: npt.ArrayLike, out: npt.ArrayLike) -> float:
    """`Separation.auroc` alone, without its interval; see `separation`."""
    ours, theirs = np.sort(np.asarray(held_out, np.float64)), np.asarray(out, np.float64)
    less, up_to = (np.searchsorted(ours, theirs, side) for side in ("left", "right"))
    return float((less + up_to).mean() / (2 * len(ours)))


def _weights(n: int, m: int) -> Iterator[tuple[Float64Array, Float64Array]]:
    """Draws of weights, [B, N + 1] and [B, M + 1], some at a time; divided by their sum, of Dirichlet(1, ..., 1)."""
    rng = np.random.default_rng(0)
    step = max(1, _MOST_VALUES // (n + m + 2))
    for first in range(0, _DRAWS, step):
        draws = min(step, _DRAWS - first)
        yield rng.standard_exponential((draws, n + 1)), rng.standard_exponential((draws, m + 1))


def _figures(
    ours: npt.NDArray[np.int64],
    theirs: npt.NDArray[np.int64],
    our_weights: Float64Array,
    their_weights: Float64Array,
) -> Float64Array:
    """AUROC, AUPR and FPR of ranks [N] and [M] for each of B weights, [B, 3]."""
    ranks = np.concatenate((ours, theirs))
    order = np.argsort(-ranks)
    last = np.flatnonzero(np.diff(ranks[order], append=ranks.min() - 1))  # of each group of ties, [G]

    def rates(weights: Float64Array) -> Float64Array:
        """The share that is flagged with each threshold, [B, G + 1]."""
        flagged = np.cumsum(weights[:, order], axis=1)[:, last]
        return np.concatenate((np.zeros((len(weights), 1)), flagged), axis=1) / flagged[:, -1:]

    fpr = rates(np.concatenate((our_weights, np.zeros_like(their_weights)), axis=1))
    tpr = rates(np.concatenate((np.zeros_like(our_weights), their_weights), axis=1))
    found = np.diff(tpr, axis=1)
    area = (np.diff(fpr, axis=1) * (tpr[:, 1:] + tpr[:, :-1]) / 2).sum(axis=1)
    precision = tpr[:, 1:] / (tpr[:, 1:] + fpr[:, 1:])
    reached = np.argmax(tpr >= _TPR - _ROUNDING, axis=1)
    figures = (area, (found * precision).sum(axis=1), fpr[np.arange(len(fpr)), reached])
    return np.stack(figures, axis=1)
