"""The scores of images: what each number means, and how it is computed from the output of a forward graph.

To add a score, add a field to `ImageScore` (protos/glowserve/v1/glow_service.proto), a column to `Scores`, and its
values to `Scorer.score`. The messages, the clients, `glowserve score --json` and the Open Inference Protocol take their
columns from `Scores`.

Shapes: N images, D values each.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Protocol

import numpy as np
import numpy.typing as npt

from glowserve.likelihood import bits_per_dim
from glowserve.v1.manifest_pb2 import Manifest

Float64Array = npt.NDArray[np.float64]

# The metadata of a column: fields without them describe the scores of all images.
_NUMBER, _FLAG = {"dtype": np.float64}, {"dtype": np.bool_}


@dataclass(frozen=True, kw_only=True)
class Scores:
    """The scores of N images under a model. A column has one value for each image."""

    log_likelihood: Float64Array = field(metadata=_NUMBER)
    """The natural logarithm of the probability of the discrete image, in nats, [N]. Minus infinity if not `finite`."""

    bits_per_dim: Float64Array = field(metadata=_NUMBER)
    """-log_likelihood / (D ln 2), [N]; lower is more likely. Plus infinity if not `finite`."""

    percentile: Float64Array = field(metadata=_NUMBER)
    """The percentage, 0 to 100, of the bundle's calibration images that are less likely, [N]; ties count half. 0 if not
    `finite`."""

    finite: npt.NDArray[np.bool_] = field(metadata=_FLAG)
    """Whether the log-likelihood is in the range of float32, [N]."""

    model: str
    """The model's name."""

    version: int
    """The model's version."""

    seed: int
    """The seed of the dequantization noise; the same seed gives the same scores."""

    def __len__(self) -> int:
        return len(self.log_likelihood)


COLUMNS = {each.name: each.metadata["dtype"] for each in fields(Scores) if each.metadata}
"""The dtype of each column, by its name in `Scores` and in the message `ImageScore`."""


class ForwardOutput(Protocol):
    """The output of a forward graph for N images."""

    @property
    def log_likelihood(self) -> npt.NDArray[np.float32]:
        """Log-likelihoods of the discrete images in nats, [N]."""


class Scorer:
    """Computes scores from the output of one bundle's forward graph.

    Args:
        manifest: the bundle's manifest. Its calibration has one or more finite values.
    """

    def __init__(self, manifest: Manifest) -> None:
        self._model, self._version = manifest.model, manifest.version
        self._dimensions = manifest.image.latent_size
        self._held_out = np.sort(np.asarray(manifest.calibration.bits_per_dim, dtype=np.float64))

    def score(self, forward: ForwardOutput, seed: int) -> Scores:
        """The scores of N images. A log-likelihood that is not finite becomes minus infinity.

        Args:
            forward: the output of the forward graph for the images.
            seed: the seed of the dequantization noise that the graph was given.
        """
        finite = np.isfinite(forward.log_likelihood)
        nats = np.where(finite, forward.log_likelihood.astype(np.float64), -np.inf)
        bits = bits_per_dim(nats, self._dimensions)
        return Scores(
            log_likelihood=nats,
            bits_per_dim=bits,
            percentile=self._percentile(bits),
            finite=finite,
            model=self._model,
            version=self._version,
            seed=seed,
        )

    def _percentile(self, bits: Float64Array) -> Float64Array:
        """The percentage of calibration images with more bits per dimension, [N]; ties count half."""
        n = len(self._held_out)
        more = n - np.searchsorted(self._held_out, bits, side="right")
        as_many_or_more = n - np.searchsorted(self._held_out, bits)
        percentile: Float64Array = 50 * (more + as_many_or_more) / n
        return percentile
