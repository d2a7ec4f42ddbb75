"""How often a conformal p-value flags images that belong, and how often it should.

With n calibration images, p <= a happens with a probability that depends on them: it is itself drawn from
Beta(k, n + 1 - k), k = floor(a (n + 1)), so that the number of m further images is beta-binomial (Vovk 2012,
arXiv:1209.2673, proposition 2a; Angelopoulos and Bates 2021, arXiv:2107.07511, section 3.2).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

RATES = (0.1, 0.05, 0.01)
"""The rates at which false alarms are counted."""

_TAIL = 0.025
# a (n + 1) is rounded, such as 0.1 * 30.
_ROUNDING = 1e-9


@dataclass(frozen=True, kw_only=True)
class FalseAlarms:
    """False alarms at one rate."""

    asked: float
    """a: images with p <= a are flagged."""

    measured: float
    """The share of images that are flagged."""

    low: float
    """The lower end of the beta-binomial 95 % interval of that share."""

    high: float
    """The upper end."""

    @property
    def inside(self) -> bool:
        """Whether the share is in the interval."""
        return self.low <= self.measured <= self.high


def false_alarms(p_values: npt.ArrayLike, calibration_images: int, rate: float) -> FalseAlarms:
    """Counts false alarms.

    Args:
        p_values: of images that nothing was fitted to or calibrated on, [M].
        calibration_images: n, of which no two are equally odd; ties make alarms rarer.
        rate: a. Below the resolution, 1 / (n + 1), there are no alarms.
    """
    p = np.asarray(p_values, np.float64)
    low, high = false_alarm_interval(p.size, calibration_images, rate)
    return FalseAlarms(asked=rate, measured=float((p <= rate).mean()), low=low, high=high)


def false_alarm_interval(images: int, calibration_images: int, rate: float) -> tuple[float, float]:
    """The beta-binomial 95 % interval of the share of images with p <= rate."""
    k = math.floor(rate * (calibration_images + 1) + _ROUNDING)
    if k == 0:
        return 0.0, 0.0
    if k > calibration_images:
        return 1.0, 1.0
    j = np.arange(images)
    ratios = (images - j) * (j + k) / ((j + 1) * (images - j - 1 + calibration_images + 1 - k))
    log_mass = np.concatenate(([0.0], np.cumsum(np.log(ratios))))
    distribution = np.cumsum(np.exp(log_mass - log_mass.max()))
    ends = np.searchsorted(distribution / distribution[-1], (_TAIL, 1 - _TAIL))
    return float(ends[0] / images), float(ends[1] / images)
