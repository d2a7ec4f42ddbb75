"""What is usual of each part of an image: its mean and its standard deviation among the calibration images.

Shapes: N images, n calibration images, L levels, D values of an image.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from glowserve.likelihood import bits_per_dim
from glowserve.scores.parts import Parts

LEAST_IMAGES = 2
"""The fewest calibration images that have a standard deviation."""

# Nats. A part that differs by less from image to image counts as if it differed by that, like the places of a heat map.
_LEAST_SPREAD = 1e-3

Float64Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Part:
    """A part of one image, compared with the same part of the calibration images."""

    name: str
    """The score that it is: log_prior, log_det, complexity_bits_per_dim or bits_per_dim."""

    level: int
    """The level of log_prior and log_det, from 1, nearest to the pixels; 0 of the others."""

    value: float
    """The score. May be infinite, or not a number, if the log-likelihood is not finite."""

    deviation: float
    """How far the value lies above (positive) or below (negative) the mean of the calibration images, in units of their
    standard deviation. Infinite, or not a number, if the value is."""

    def __str__(self) -> str:
        """Its name and its deviation: "log_det[1] -8.31"."""
        name = f"{self.name}[{self.level}]" if self.level else self.name
        return f"{name} nan" if math.isnan(self.deviation) else f"{name} {self.deviation:+.3g}"


class UsualParts:
    """The mean and the standard deviation of each part.

    Args:
        calibration: the parts of the calibration images; n is LEAST_IMAGES or more.
        complexity: of the calibration images, [n]; None if that of images is not compared.
        dimensions: D.
    """

    def __init__(self, calibration: Parts, complexity: Float64Array | None, dimensions: int) -> None:
        self._dimensions = dimensions
        least_bits = abs(bits_per_dim(_LEAST_SPREAD, dimensions))
        self._usual = {
            (name, level): (values.mean(), max(values.std(ddof=1), _LEAST_SPREAD if level else least_bits))
            for (name, level), values in self._columns(calibration, complexity).items()
        }

    def compare(self, images: Parts, complexity: Float64Array) -> tuple[tuple[Part, ...], ...]:
        """The parts of each of N images, the farthest from usual first; those that are not finite before all others.

        Args:
            images: their parts.
            complexity: theirs, [N].
        """
        columns = self._columns(images, complexity)
        rows: list[list[Part]] = [[] for _ in range(len(images))]
        for (name, level), (mean, spread) in self._usual.items():
            values = columns[name, level]
            deviations = (values - mean) / spread
            for row, value, deviation in zip(rows, values.tolist(), deviations.tolist(), strict=True):
                row.append(Part(name, level, value, deviation))
        return tuple(tuple(sorted(row, key=_closeness)) for row in rows)

    def _columns(
        self, parts: Parts, complexity: Float64Array | None
    ) -> Mapping[tuple[str, int], Float64Array]:
        """Each part by its name and its level, [N]."""
        columns: dict[tuple[str, int], Float64Array] = {}
        for name in ("log_prior", "log_det"):
            columns |= {(name, i): values for i, values in enumerate(getattr(parts, name).T, start=1)}
        if complexity is not None:
            columns["complexity_bits_per_dim", 0] = complexity
        nats = np.where(np.isfinite(parts.log_likelihood), parts.log_likelihood, -np.inf)
        columns["bits_per_dim", 0] = bits_per_dim(nats, self._dimensions)
        return columns


def _closeness(part: Part) -> float:
    return -math.inf if math.isnan(part.deviation) else -abs(part.deviation)
