"""Scores: what each number means, and how it follows from the output of a forward graph.

To add a score: a field in `ImageScore` (protos/glowserve/v1/glow_service.proto), a column in `Scores` and its values in
`Scorer.score`. The messages, the clients, the command line's JSON and the Open Inference Protocol follow the columns.

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


_NUMBER, _TRUTH = {"dtype": np.float64}, {"dtype": np.bool_}


@dataclass(frozen=True, kw_only=True)
class Scores:
    """How likely N images are under a model."""

    log_likelihood: Float64Array = field(metadata=_NUMBER)
    """Nats, of the discrete image, [N]; minus infinity where not `finite`."""

    bits_per_dim: Float64Array = field(metadata=_NUMBER)
    """-log_likelihood / (D ln 2), [N]: lower is likelier. Plus infinity where not `finite`."""

    percentile: Float64Array = field(metadata=_NUMBER)
    """The percentage of held-out images that is less likely, [N]; near 0: hardly any known image was as unlikely."""

    finite: npt.NDArray[np.bool_] = field(metadata=_TRUTH)
    """Whether the likelihood stayed in the range of float32, [N]."""

    model: str
    """The model's name."""

    version: int
    """The model's version."""

    seed: int
    """Of the dequantization noise; the same seed gives the same scores."""

    def __len__(self) -> int:
        return len(self.log_likelihood)


COLUMNS = {each.name: each.metadata["dtype"] for each in fields(Scores) if each.metadata}
"""The dtype of each score of an image, by its name in `Scores` and in the message `ImageScore`."""


class ForwardTerms(Protocol):
    """What a forward graph says of N images."""

    @property
    def log_likelihood(self) -> npt.NDArray[np.float32]:
        """Nats of the discrete image, [N]."""


class Scorer:
    """Turns the output of one bundle's forward graph into scores.

    Args:
        manifest: the bundle's.
    """

    def __init__(self, manifest: Manifest) -> None:
        self._model, self._version = manifest.model, manifest.version
        self._dimensions = manifest.image.latent_size
        self._held_out = np.sort(np.asarray(manifest.calibration.bits_per_dim, dtype=np.float64))

    def score(self, forward: ForwardTerms, seed: int) -> Scores:
        """Scores of N images, which were dequantized with noise of `seed`.

        A log-likelihood that is not finite becomes minus infinity.
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
        """The percentage of held-out images with more bits per dimension; a tie counts as half."""
        n = len(self._held_out)
        more = n - np.searchsorted(self._held_out, bits, side="right")
        as_many_or_more = n - np.searchsorted(self._held_out, bits)
        percentile: Float64Array = 50 * (more + as_many_or_more) / n
        return percentile
