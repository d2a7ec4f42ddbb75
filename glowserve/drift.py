"""Has a stream of images changed? A sequential detector over the images' conformal p-values.

An image's p-value is (1 + how many of n calibration images are at least as odd) / (n + 1). While images come from where
the calibration images came from, p-values are nearly uniform: nearly, for n images do not tell a distribution exactly.
A detector that takes them for uniform ends in a false alarm on every calibration. This one asks only whether p-values
leave what n images allow:

- **The band.** The share of images whose p-value is at most k / (n + 1) is the k-th smallest of n uniform numbers, a
  beta variable, and lies below an upper and above a lower quantile of it (Vovk 2012, "Conditional validity of inductive
  conformal predictors"). It does so at all levels and on both sides at once for 99 % of calibrations
  (Bonferroni). The band is as wide as that of Dvoretzky, Kiefer and Wolfowitz in the middle, and narrower at the ends,
  where anomalies are. Shaer et al. 2026, "Testing for distribution shifts with conditional conformal test martingales",
  do the same with that band.
- **The bets.** For each level, side and size of a shift, a likelihood ratio is the e-value of an image: its expectation
  is at most 1 for any share inside the band.
- **The e-detector** (Shin, Ramdas and Rinaldo 2024, "E-detectors: a nonparametric framework for sequential change
  detection") adds up one test for each image at which the change could have begun, in the manner of Shiryaev
  and Roberts, and takes the mean over all bets. Its expectation at any time at which one may stop is at most the number
  of images until then: it reaches c after c or more images on average.

Shapes: L levels, B = 2 L bounds (upper, lower), S sizes of a shift, N images.
"""

from __future__ import annotations

import threading
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Float64Array = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]

RUN_LENGTH = 1e9
"""How many images there are on average until a false alarm, at least."""

BAND_ERROR = 0.01
"""The share of calibrations whose band may be wrong."""

# Where shares are compared with the band: most room in the middle, and the ends for anomalies and repetitions.
_LEVELS = (0.01, 0.03, 0.1, 0.25, 0.5, 0.75, 0.9, 0.97)
# How far a bet looks beyond the band, in log-odds. A bet is good at shifts from half to twice its own.
_SHIFTS = (0.25, 0.7, 2.0)
# Images that one step of the recursion takes together. Only how many lie at each level matters, not their order.
_BLOCK = 64


class Lead(NamedTuple):
    """The bet that has found most."""

    level: float
    """A p-value, 0 to 1."""

    more: bool
    """Whether more images than the band allows have at most this p-value; else fewer have."""


class DriftDetector:
    """Watches the p-values of one model's images. Its state does not grow. Threads may share it.

    Args:
        oddness: what the p-values were computed from, of each calibration image, [n], in any order; larger is odder.
            Equal values are allowed.
        run_length: the average number of images until a false alarm, at least; the mean over calibrations.

    Raises:
        ValueError: there is no calibration image, one is NaN, or the run length is out of range.
    """

    def __init__(self, oddness: npt.ArrayLike, run_length: float = RUN_LENGTH) -> None:
        sorted_oddness = np.sort(-np.asarray(oddness, dtype=np.float64).ravel())  # the oddest first
        self.images = n = len(sorted_oddness)
        """How many calibration images there are."""
        if not n or np.isnan(sorted_oddness).any():
            raise ValueError("oddness must be that of one or more calibration images, and not NaN")
        if not 1 < run_length <= 1e15:
            raise ValueError(f"run_length is {run_length}; it must be above 1 image and at most 1e15")
        self.run_length = run_length
        self.statistic = 0.0
        """How much speaks for a change, in images: unchanged images reach c after c or more of them on average."""
        self.alarms = 0
        """How often the statistic has risen to the run length."""
        ranks = np.unique(np.clip(np.rint(np.array(_LEVELS) * (n + 1)), 1, n).astype(np.int64))
        upper, lower = band(n, ranks, BAND_ERROR)
        # S is the oddness of a new image, s_k that of the k-th oddest of calibration, and V_k the k-th smallest of n
        # uniform numbers, which the band holds. P(S > s_k) <= V_k <= P(S >= s_k), whether or not values are equal. The
        # p-value is at most k / (n + 1) only if S > s_k; it is at most (c + 1) / (n + 1) if S >= s_k, c of calibration.
        as_odd = np.searchsorted(sorted_oddness, sorted_oddness[ranks - 1], side="right")
        self._edges = (np.concatenate([ranks, as_odd + 1]) + 0.5) / (n + 1)  # [B]
        self._inside, self._outside = _bets(upper, lower)
        self._log_evidence = np.full(self._inside.shape, -np.inf)  # [B, S]
        self._lock = threading.Lock()

    def update(self, p_values: npt.ArrayLike) -> bool:
        """Adds the p-values of N images; returns whether an alarm began with them.

        Calls may come in any order that does not depend on the p-values.

        Raises:
            ValueError: a p-value is not above 0 and at most 1.
        """
        values = np.asarray(p_values, dtype=np.float64).ravel()
        if not ((values > 0) & (values <= 1)).all():
            raise ValueError("a p-value must be above 0 and at most 1")
        with self._lock:
            before = self.alarms
            for first in range(0, len(values), _BLOCK):
                self._step(np.sort(values[first : first + _BLOCK]))
            return self.alarms > before

    @property
    def changed(self) -> bool:
        """Whether the statistic is at the run length or above."""
        return self.statistic >= self.run_length

    @property
    def lead(self) -> Lead:
        """What the change looks like, if there is one."""
        bound = int(self._log_evidence.max(axis=1).argmax())
        return Lead(float(self._edges[bound]), more=bound < len(self._edges) // 2)

    def _step(self, values: Float64Array) -> None:
        """Adds up to a block of p-values, sorted. A test begins before the block for each image in it."""
        n, changed = len(values), self.changed
        inside = np.searchsorted(values, self._edges)[:, None]  # [B, 1]
        evidence = np.logaddexp(self._log_evidence, np.log(n))
        evidence += inside * self._inside + (n - inside) * self._outside
        highest = evidence.max()
        # Nothing is promised where the band is wrong; the factor makes the mean over all calibrations the run length.
        log_statistic = highest + np.log((1 - BAND_ERROR) * np.exp(evidence - highest).mean())
        # As much evidence ends an alarm as began it: enough for it to last as the change does, and no longer.
        above = max(0.0, log_statistic - 2 * np.log(self.run_length))
        self._log_evidence = evidence - above
        self.statistic = float(np.exp(log_statistic - above))
        self.alarms += self.changed and not changed


def band(n: int, ranks: Int64Array, error: float) -> tuple[Float64Array, Float64Array]:
    """Bounds of the k-th smallest of n uniform numbers for all ranks k at once, upper [L] and lower [L].

    Args:
        n: how many numbers.
        ranks: the ranks k, 1 to n, [L].
        error: the probability that one or more of the 2 L bounds is wrong, at most.
    """
    # The k-th smallest is above x if at most k - 1 of n lie below x: the sum of k binomial probabilities. Only those of
    # the last 10 sqrt(n) count: for an x of (k - 1) / n or more, the others are less than 1e-86 together (Hoeffding).
    log_factorials = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n + 1)))])

    def upper(k: int) -> float:
        below = np.arange(max(0, k - int(10 * n**0.5) - 1), k)
        log_ways = log_factorials[n] - log_factorials[below] - log_factorials[n - below]
        low, high = (k - 1) / n, 1.0
        while high - low > 1e-12:
            x = (low + high) / 2
            terms = log_ways + below * np.log(x) + (n - below) * np.log1p(-x)
            low, high = (low, x) if np.exp(terms).sum() <= error / (2 * len(ranks)) else (x, high)
        return high

    uppers = [upper(k) for k in ranks]
    lowers = [1 - upper(n + 1 - k) for k in ranks]  # by symmetry
    return np.array(uppers), np.array(lowers)


def _bets(upper: Float64Array, lower: Float64Array) -> tuple[Float64Array, Float64Array]:
    """The logarithm of each bet's e-value for an image inside and outside its level, both [B, S]."""
    bounds = np.concatenate([upper, lower])[:, None]  # [B, 1]
    signs = np.repeat([1.0, -1.0], len(upper))[:, None]
    odds = bounds / (1 - bounds) * np.exp(signs * np.array(_SHIFTS))  # [B, S]
    share = odds / (1 + odds)
    return np.log(share / bounds), np.log((1 - share) / (1 - bounds))
