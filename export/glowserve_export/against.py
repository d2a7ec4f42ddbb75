"""How well each score of a bundle tells images that do not belong from those that do.

Held-out images that nothing was fitted to or calibrated on stand beside sets of out-of-distribution images. Two
detectors that need no such service are measured with every score: the raw likelihood, and the size of a lossless file.

Shapes: N images, H W C.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from glowserve.images import UInt8Array
from glowserve.scores.conformal import p_values, two_sided_p_values
from glowserve.scores.table import TABLE
from glowserve_export.detection import Separation, separation
from glowserve_export.false_alarms import RATES, FalseAlarms, false_alarms

Float64Array = npt.NDArray[np.float64]
Columns = Mapping[str, Float64Array]
Score = Callable[[UInt8Array], Columns]

_SIGN = {"low": -1, "high": 1}

RAW_LIKELIHOOD = "raw likelihood"
COMPLEXITY_ALONE = "complexity alone"
BASELINES: Mapping[str, Sequence[str]] = {
    RAW_LIKELIHOOD: ("log_likelihood", "bits_per_dim", "percentile"),
    COMPLEXITY_ALONE: ("complexity_bits_per_dim",),
}
"""The detectors that every other one has to beat, and the scores that order images as they do. The raw likelihood flags
images with many bits/dim; complexity alone flags those that are simpler or more complex than calibration images are."""

ODD: Mapping[str, Literal["low", "high"]] = {
    name: score.odd
    for name, score in TABLE.items()
    if score.odd and not any(name in alike for alike in BASELINES.values())
}
"""Which values of the other scores are odd."""


@dataclass(frozen=True)
class OutOfDistribution:
    """A set of images that do not belong."""

    name: str
    """What tables and plots call it."""

    images: UInt8Array
    """uint8 [N, H, W, C]."""


@dataclass(frozen=True)
class MeasuredSet:
    """A set and how well each detector finds it."""

    name: str
    """The set's name."""

    images: int
    """N."""

    separations: Mapping[str, Separation]
    """By detector."""

    def lead(self, detector: str) -> float:
        """How far a detector's AUROC is above that of the better baseline; negative if it is below."""
        better = max(self.separations[name].auroc.value for name in BASELINES)
        return self.separations[detector].auroc.value - better


@dataclass(frozen=True)
class Summary:
    """A detector over all sets."""

    mean_auroc: float
    """The mean of the sets' AUROC."""

    worst: MeasuredSet
    """The set with the lowest AUROC."""

    farthest_behind: MeasuredSet
    """The set with the lowest `MeasuredSet.lead`."""


@dataclass(frozen=True, kw_only=True)
class Against:
    """The result of an evaluation against sets of out-of-distribution images."""

    images: int
    """Held-out images."""

    calibration_images: int
    """The images that p-values are calibrated on."""

    detectors: Sequence[str]
    """The baselines, then the scores."""

    sets: Sequence[MeasuredSet]
    """In the order that they were given."""

    false_alarms: Mapping[str, Sequence[FalseAlarms]]
    """By detector, at each of `RATES`."""

    def summary(self, detector: str) -> Summary:
        """A detector over all sets."""
        figures = [each.separations[detector].auroc.value for each in self.sets]
        return Summary(
            mean_auroc=float(np.mean(figures)),
            worst=self.sets[int(np.argmin(figures))],
            farthest_behind=min(self.sets, key=lambda each: each.lead(detector)),
        )


def evaluate_against(
    score: Score,
    held_out: UInt8Array,
    calibration: UInt8Array,
    sets: Sequence[OutOfDistribution],
    step: Callable[[], object] = lambda: None,
) -> Against:
    """Measures every score.

    Args:
        score: computes the scores, each [N], of images, uint8 [N, H, W, C]: `bits_per_dim`, `complexity_bits_per_dim`,
            and any of `ODD`.
        held_out: images that nothing was fitted to or calibrated on.
        calibration: the images that the bundle's scores are calibrated on. A score that is no p-value itself becomes
            one by them, to count its false alarms.
        sets: one or more sets.
        step: called after each set, for progress.

    Raises:
        ValueError: there are no sets, or one or both kinds of images are missing.
    """
    if not sets or not len(held_out) or not len(calibration):
        raise ValueError("held-out images, calibration images and sets must each be one or more")
    measure = _Detectors(score, calibration)
    ours = measure.oddness(held_out)
    measured = []
    for each in sets:
        theirs = measure.oddness(each.images)
        separations = {name: separation(ours[name], theirs[name]) for name in ours}
        measured.append(MeasuredSet(each.name, len(each.images), separations))
        step()
    return Against(
        images=len(held_out),
        calibration_images=len(calibration),
        detectors=list(ours),
        sets=measured,
        false_alarms={name: measure.false_alarms(name, oddness) for name, oddness in ours.items()},
    )


class _Detectors:
    """Turns images into oddness, by detector: higher is odder.

    Args:
        score: see `evaluate_against`.
        calibration: see there.
    """

    def __init__(self, score: Score, calibration: UInt8Array) -> None:
        self._score, self._images = score, len(calibration)
        known = score(calibration)
        self._complexity = np.sort(known["complexity_bits_per_dim"])
        self._calibration = {name: np.sort(values) for name, values in self._oddness(known).items()}

    def oddness(self, images: UInt8Array) -> dict[str, Float64Array]:
        """The oddness of each image, [N], by detector."""
        return self._oddness(self._score(images))

    def false_alarms(self, detector: str, oddness: Float64Array) -> list[FalseAlarms]:
        """The false alarms among held-out images with this oddness, at each rate."""
        p = -oddness if is_p_value(detector) else p_values(oddness, self._calibration[detector])
        return [false_alarms(p, self._images, rate) for rate in RATES]

    def _oddness(self, columns: Columns) -> dict[str, Float64Array]:
        complexity = two_sided_p_values(columns["complexity_bits_per_dim"], self._complexity)
        found = {RAW_LIKELIHOOD: columns["bits_per_dim"], COMPLEXITY_ALONE: -complexity}
        return found | {name: _SIGN[ODD[name]] * columns[name] for name in columns if name in ODD}


def is_p_value(detector: str) -> bool:
    """Whether a detector's values are p-values already: those of the table, and the two-sided one of complexity."""
    return detector == COMPLEXITY_ALONE or detector.endswith("p_value")
