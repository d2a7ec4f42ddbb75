"""Computes the scores of images from the output of a forward graph.

Shapes: N images, H W C, D = H * W * C, L levels, K classes, M draws of noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from glowserve.images import UInt8Array
from glowserve.likelihood import bits_per_dim
from glowserve.scores import complexity
from glowserve.scores.asked import NOTHING_ELSE, Asked
from glowserve.scores.calibration import Calibration
from glowserve.scores.channels import channel_statistics
from glowserve.scores.conformal import default_false_alarm_rate, p_values, two_sided_p_values
from glowserve.scores.contrasts import contrasts
from glowserve.scores.importance import log_mean_exp
from glowserve.scores.parts import Parts
from glowserve.scores.results import Float64Array, Scores
from glowserve.scores.table import TABLE, Needs
from glowserve.scores.usual_parts import LEAST_IMAGES, UsualParts
from glowserve.v1.manifest_pb2 import Manifest


class ForwardOutput(Protocol):
    """The output of a forward graph for N images."""

    @property
    def log_likelihood(self) -> npt.NDArray[np.float32]:
        """Log-likelihoods of the discrete images in nats, [N]."""

    @property
    def latent(self) -> npt.NDArray[np.float32]:
        """Latents, [N, D]."""

    @property
    def log_prior(self) -> npt.NDArray[np.float32]:
        """Log-densities of the latents in nats, by level, [N, L]."""

    @property
    def log_det(self) -> npt.NDArray[np.float32]:
        """Log-determinants in nats, by level, [N, L]."""

    @property
    def log_posterior(self) -> npt.NDArray[np.float32] | None:
        """Log p(c | x) of K classes, [N, K]; None of a model without classes."""


class Likelihoods(NamedTuple):
    """The scores of N images that are in every answer, as in `Scores`. Each row depends on its image alone."""

    log_likelihood: Float64Array
    bits_per_dim: Float64Array
    percentile: Float64Array
    finite: npt.NDArray[np.bool_]


class Scorer:
    """Computes scores from the output of one bundle's forward graph.

    Args:
        manifest: the bundle's manifest. Its calibration has one or more finite values.
        calibration: the bundle's; None if it has none.
    """

    def __init__(self, manifest: Manifest, calibration: Calibration | None = None) -> None:
        self._model, self._version = manifest.model, manifest.version
        image = manifest.image
        self._dimensions, self._n_bits, self._levels = image.latent_size, image.n_bits, manifest.flow.levels
        self._shape = image.height, image.width, image.channels
        self._held_out = np.sort(np.asarray(manifest.calibration.bits_per_dim, dtype=np.float64))
        self.calibration = calibration
        """The bundle's; None if it has none."""
        self.codec_differs = False
        """Whether this machine's codec writes other files than the one of the calibration."""
        self.oddness: Float64Array | None = None
        """Of each calibration image, which `anomaly_p_value` compares with, [n], ascending; None without a
        calibration."""
        if calibration is not None:
            canary = np.frombuffer(manifest.canary.image, np.uint8).reshape(self._shape)
            self.codec_differs = not np.array_equal(complexity.fingerprint(canary), calibration.codec)
            self.oddness = np.sort(calibration.density.oddness(calibration.images, self._dimensions))
            self._bits = np.sort(bits_per_dim(calibration.images.log_likelihood, self._dimensions))
        self._classes = len(manifest.flow.classes)
        self.names = frozenset(name for name, score in TABLE.items() if self.computes(score.needs))
        """The scores of the table that the bundle has what they need for."""

    @classmethod
    def of_calibration(cls, manifest: Manifest, calibration: Calibration) -> Scorer:
        """The scorer whose percentiles, too, compare with the images of a calibration."""
        scorer = cls(manifest, calibration)
        scorer._held_out = scorer._bits
        return scorer

    def computes(self, needs: Needs) -> bool:
        """Whether the bundle has what a score needs."""
        if Needs.CODEC in needs and self.codec_differs:
            return False
        if Needs.CLASSES in needs and not self._classes:
            return False
        return Needs.CALIBRATION not in needs or self.calibration is not None

    @cached_property
    def usual_parts(self) -> UsualParts | None:
        """What the parts of images are compared with; None if there are fewer than LEAST_IMAGES calibration images."""
        if self.calibration is None or len(self.calibration.images) < LEAST_IMAGES:
            return None
        complexity = None if self.codec_differs else self.calibration.complexity
        return UsualParts(self.calibration.images, complexity, self._dimensions)

    def complexity(self, images: UInt8Array) -> Float64Array:
        """`complexity_bits_per_dim` of images, uint8 [N, H, W, C], [N]."""
        return complexity.complexity_bits_per_dim(images, self._n_bits)

    def likelihoods(self, log_likelihood: npt.NDArray[np.float32]) -> Likelihoods:
        """The scores that are in every answer.

        Args:
            log_likelihood: the output of the forward graph, [N]. One that is not finite becomes minus infinity.
        """
        finite, nats = _finite(log_likelihood)
        bits = bits_per_dim(nats, self._dimensions)
        return Likelihoods(nats, bits, self._percentile(bits), finite)

    def score(
        self,
        forward: ForwardOutput,
        seed: int,
        asked: Asked = NOTHING_ELSE,
        *,
        likelihoods: Likelihoods | None = None,
        reference: ForwardOutput | None = None,
        p_values: Float64Array | None = None,
        complexity: Float64Array | None = None,
        draws: Sequence[npt.NDArray[np.float32]] = (),
    ) -> Scores:
        """The scores of N images.

        Args:
            forward: the output of the forward graph for the images, with the first draw of noise.
            seed: the seed of the dequantization noise that the graph was given.
            asked: what is asked for; the bundle has what it needs.
            likelihoods: of that output; None to compute them.
            reference: the output with the noise of the default seed, if that is needed.
            p_values: of the images, [N], if they are needed.
            complexity: of the images, [N], if that is needed.
            draws: the log-likelihoods with the other draws of noise, [N] each.
        """
        nats, bits, percentile, finite = likelihoods or self.likelihoods(forward.log_likelihood)
        found: dict[str, Any] = {}
        if draws:
            finite, nats, found["standard_error"] = log_mean_exp([forward.log_likelihood, *draws])
            bits = bits_per_dim(nats, self._dimensions)
            percentile = np.where(finite, percentile, 0.0)
        if asked.scores:
            found |= self._asked(forward, asked, bits, reference, p_values, complexity)
        return Scores(
            log_likelihood=nats,
            bits_per_dim=bits,
            percentile=percentile,
            finite=finite,
            model=self._model,
            version=self._version,
            seed=seed,
            false_alarm_rate=self._false_alarm_rate(asked) if "anomalous" in asked else None,
            **{name: values for name, values in found.items() if name in asked},
        )

    def _asked(
        self,
        forward: ForwardOutput,
        asked: Asked,
        bits: Float64Array,
        reference: ForwardOutput | None,
        p_values: Float64Array | None,
        complexity: Float64Array | None,
    ) -> dict[str, Any]:
        """Scores of the table by name, those that are asked for among them."""
        found: dict[str, Any] = {
            name: getattr(forward, name).astype(np.float64)
            for name in ("log_prior", "log_det")
            if name in asked
        }
        if forward.log_posterior is not None and "log_posterior" in asked:
            finite, _ = _finite(forward.log_likelihood)
            posterior = forward.log_posterior.astype(np.float64)
            found["log_posterior"] = np.where(finite[:, None], posterior, -np.inf)
        if complexity is not None:
            found["complexity_bits_per_dim"] = complexity
            found["bits_per_dim_minus_complexity"] = bits - complexity
        if reference is not None:
            found["typicality_p_value"] = self._typicality(reference)
        if p_values is not None:
            found["anomaly_p_value"] = p_values
        if "anomalous" in asked:
            found["anomalous"] = found["anomaly_p_value"] <= self._false_alarm_rate(asked)
        return found

    def parts(self, forward: ForwardOutput, images: UInt8Array) -> Parts:
        """The parts of N images.

        Args:
            forward: the output of the forward graph for the images, with the noise of the default seed.
            images: uint8 [N, H, W, C].
        """
        return Parts(
            log_likelihood=forward.log_likelihood.astype(np.float64),
            log_prior=forward.log_prior.astype(np.float64),
            log_det=forward.log_det.astype(np.float64),
            channels=channel_statistics(forward.latent, self._shape, self._levels),
            contrasts=contrasts(images, self._n_bits, self._levels),
        )

    def p_values(self, parts: Parts) -> Float64Array:
        """`anomaly_p_value` of images, [N]; the bundle has a calibration."""
        assert self.calibration is not None
        assert self.oddness is not None
        return p_values(self.calibration.density.oddness(parts, self._dimensions), self.oddness)

    def _typicality(self, reference: ForwardOutput) -> Float64Array:
        _, nats = _finite(reference.log_likelihood)
        return two_sided_p_values(bits_per_dim(nats, self._dimensions), self._bits)

    def _false_alarm_rate(self, asked: Asked) -> float:
        if asked.false_alarm_rate is not None:
            return asked.false_alarm_rate
        assert self.oddness is not None
        return default_false_alarm_rate(len(self.oddness))

    def _percentile(self, bits: Float64Array) -> Float64Array:
        """The percentage of calibration images with more bits per dimension, [N]; ties count half."""
        n = len(self._held_out)
        # Images with fewer bits, and with as many or fewer: the others have more, and as many or more.
        fewer, not_more = self._held_out.searchsorted(bits), self._held_out.searchsorted(bits, side="right")
        percentile: Float64Array = 50 * (2 * n - fewer - not_more) / n
        return percentile


def _finite(log_likelihood: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.bool_], Float64Array]:
    """Whether each log-likelihood is finite, and the log-likelihoods, of which the others are minus infinity; [N]."""
    finite = np.isfinite(log_likelihood)
    return finite, np.where(finite, log_likelihood.astype(np.float64), -np.inf)
