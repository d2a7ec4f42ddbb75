"""The scores of images, as a caller gets them.

Shapes: N images, L levels, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from glowserve.scores.table import TABLE

Float64Array = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Scores:
    """The scores of N images under a model. A score that was not asked for is None.

    docs/scores.md says what each score means, as `glowserve.scores.TABLE` does, and docs/anomalies.md which to act on.
    """

    log_likelihood: Float64Array
    """The natural logarithm of the probability of the discrete image, in nats, [N]. Minus infinity if not `finite`."""

    bits_per_dim: Float64Array
    """-log_likelihood / (D ln 2), [N]; lower is more likely. Plus infinity if not `finite`."""

    percentile: Float64Array
    """The percentage, 0 to 100, of the bundle's calibration images that are less likely, [N]; ties count half. 0 if not
    `finite`."""

    finite: BoolArray
    """Whether the log-likelihood is in the range of float32, [N]."""

    anomaly_p_value: Float64Array | None = None
    """The number to act on, [N]: of images like the calibration images, at most the share a has a value up to a."""

    anomalous: BoolArray | None = None
    """Whether `anomaly_p_value` is at most `false_alarm_rate`, [N]."""

    typicality_p_value: Float64Array | None = None
    """Small if the image is less likely, or more likely, than the calibration images, [N]."""

    complexity_bits_per_dim: Float64Array | None = None
    """The size of the image as a lossless WebP file, in bits for each value, [N]."""

    bits_per_dim_minus_complexity: Float64Array | None = None
    """The difference of the two, [N]."""

    log_prior: Float64Array | None = None
    """The log-density of the latents of each level, in nats, [N, L]."""

    log_det: Float64Array | None = None
    """The log-determinants of each level that depend on the image, in nats, [N, L]."""

    log_posterior: Float64Array | None = None
    """The logarithm of the probability of each class of a class-conditional model, in their order, [N, K]."""

    standard_error: Float64Array | None = None
    """That of `log_likelihood` as an estimate from several draws of noise, in nats, [N]."""

    model: str
    """The model's name."""

    version: int
    """The model's version."""

    seed: int
    """The seed of the dequantization noise; the same seed gives the same scores. P-values have the default seed's."""

    false_alarm_rate: float | None = None
    """The false-alarm rate of `anomalous`; None if that was not asked for."""

    def __len__(self) -> int:
        return len(self.log_likelihood)

    def columns(self) -> dict[str, npt.NDArray[Any]]:
        """The scores that are there by name, in the order of the table: [N] each, [N, L] or [N, K]."""
        found = {name: getattr(self, name) for name in TABLE}
        return {name: values for name, values in found.items() if values is not None}

    def rows(self) -> Iterator[dict[str, Any]]:
        """The scores of each image by name, as numbers, truth values and lists of numbers."""
        columns = self.columns()
        for row in zip(*(values.tolist() for values in columns.values()), strict=True):
            yield dict(zip(columns, row, strict=True))
