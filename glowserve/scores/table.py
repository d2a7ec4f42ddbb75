"""The table of scores: what each number means, and what it is computed from.

Every other place is made from the table or checked against it: the fields of `ImageScore` in
protos/glowserve/v1/glow_service.proto, the attributes of `Scores`, the outputs of the Open Inference Protocol, the
command line, and docs/scores.md.

Shapes: N images, L levels, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Flag, auto
from typing import Any, Literal

import numpy as np


class Needs(Flag):
    """What a score is computed from, beside the log-likelihood of the image."""

    NOTHING = 0
    """Nothing else."""

    PARTS = auto()
    """The log-densities and log-determinants by level, with the noise of the request."""

    REFERENCE = auto()
    """The output of the forward graph with the noise of the default seed, whatever seed the request has."""

    CODEC = auto()
    """The size of the losslessly compressed image."""

    DENSITY = auto()
    """All parts of the image: see `Parts`."""

    CALIBRATION = auto()
    """The bundle's calibration.npz."""

    CLASSES = auto()
    """The classes of a class-conditional model."""

    DRAWS = auto()
    """More than one draw of noise."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """An entry of the table."""

    name: str
    """In the proto, in `Scores`, and everywhere else."""

    meaning: str
    """One or two sentences."""

    values: str
    """The range of its values."""

    source: str
    """What it is computed from, in words."""

    needs: Needs = Needs.NOTHING
    """What it is computed from, for the program."""

    calibrated: bool = False
    """Whether it compares the image with the bundle's calibration images."""

    default: bool = False
    """Whether it is in every answer. The others are computed if the request names them."""

    by: Literal["level", "class"] | None = None
    """What it has a value of each for: levels, [N, L], or classes, [N, K]. None: it has one value, [N]."""

    odd: Literal["low", "high"] | None = None
    """Which values belong to odd images; None if neither do, or both."""

    dtype: Any = np.float64
    """np.float64 or np.bool_."""


_P_VALUE = Needs.REFERENCE | Needs.CALIBRATION
_ANOMALY = _P_VALUE | Needs.DENSITY

TABLE: Mapping[str, Score] = {
    score.name: score
    for score in (
        Score(
            name="log_likelihood",
            meaning="The natural logarithm of the image's probability. Minus infinity if not `finite`.",
            values="nats, any",
            source="the forward graph",
            default=True,
            odd="low",
        ),
        Score(
            name="bits_per_dim",
            meaning="The log-likelihood as a code length for each value of the image. Infinity if not `finite`.",
            values="bits, mostly 0 to the model's n_bits; lower is more likely",
            source="the log-likelihood",
            default=True,
            odd="high",
        ),
        Score(
            name="percentile",
            meaning="The share of the calibration images that are less likely; ties count half. 0 if not `finite`.",
            values="0 to 100",
            source="bits_per_dim, and that of the calibration images",
            calibrated=True,
            default=True,
            odd="low",
        ),
        Score(
            name="finite",
            meaning="Whether the log-likelihood is in the range of float32.",
            values="true or false",
            source="the log-likelihood",
            default=True,
            dtype=np.bool_,
        ),
        Score(
            name="anomaly_p_value",
            meaning="The share of the calibration images that are at least as odd, the image itself counted. The "
            "number to act on: of images like the calibration images, at most the share a has a value up to a.",
            values="1/(n+1) to 1 with n calibration images; small is odd",
            source="log_prior and log_det, bits_per_dim, the channels of the latents, and the contrasts of the image",
            needs=_ANOMALY,
            calibrated=True,
            odd="low",
        ),
        Score(
            name="anomalous",
            meaning="Whether anomaly_p_value, which comes with it, is at most the false-alarm rate of the request.",
            values="true or false",
            source="anomaly_p_value and the false-alarm rate",
            needs=_ANOMALY,
            calibrated=True,
            dtype=np.bool_,
        ),
        Score(
            name="typicality_p_value",
            meaning="Whether the image is as likely as the calibration images are, neither less nor more.",
            values="2/(n+1) to 1 with n calibration images; small is odd",
            source="bits_per_dim, and that of the calibration images",
            needs=_P_VALUE,
            calibrated=True,
            odd="low",
        ),
        Score(
            name="complexity_bits_per_dim",
            meaning="The size of the image as a lossless WebP file, its headers included: how simple the image is for "
            "any model.",
            values="bits, above 0; lower is simpler",
            source="the image alone",
            needs=Needs.CODEC,
        ),
        Score(
            name="bits_per_dim_minus_complexity",
            meaning="bits_per_dim without what the image's own complexity explains. Infinity if not `finite`.",
            values="bits, any; higher is odder",
            source="bits_per_dim and complexity_bits_per_dim",
            needs=Needs.CODEC,
            odd="high",
        ),
        Score(
            name="log_prior",
            meaning="The log-density of the latents of each level, the level nearest to the pixels first.",
            values="nats, any",
            source="the forward graph",
            needs=Needs.PARTS,
            by="level",
        ),
        Score(
            name="log_det",
            meaning="The log-determinants of each level that depend on the image. With log_prior and the manifest's "
            "log_det_constant, their sum is the log-likelihood of one draw of noise.",
            values="nats, any",
            source="the forward graph",
            needs=Needs.PARTS,
            by="level",
        ),
        Score(
            name="log_posterior",
            meaning="The logarithm of the probability of each class given the image, in the order of the model's "
            "classes. Minus infinity if not `finite`.",
            values="nats, 0 or less",
            source="the forward graph of a class-conditional model",
            needs=Needs.CLASSES,
            by="class",
        ),
        Score(
            name="standard_error",
            meaning="The standard error of log_likelihood as an estimate from several draws of noise. Infinity if not "
            "`finite`.",
            values="nats, 0 or more",
            source="the draws of noise; needs importance_samples of 2 or more",
            needs=Needs.DRAWS,
        ),
    )
}
"""Every score by its name: first those that are in every answer."""

COLUMNS: Mapping[str, Any] = {score.name: score.dtype for score in TABLE.values() if score.default}
"""The dtype of each score that is in every answer, by its name."""
