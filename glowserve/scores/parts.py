"""The parts of images: the numbers from which the oddness of an image is computed.

Shapes: N images, L levels, D values of an image, F features.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from glowserve.likelihood import bits_per_dim

Float64Array = npt.NDArray[np.float64]

FEATURES = ("log-density of the latents", "log-determinant", "lossless WebP")
"""The features of an image, in bits for each value: what the density is a density of."""


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The parts of N images, all with the noise of the default seed."""

    log_likelihood: Float64Array
    """In nats, [N]."""

    log_prior: Float64Array
    """The log-density of the latents of each level, in nats, [N, L]."""

    log_det: Float64Array
    """The log-determinants of each level that depend on the image, in nats, [N, L]."""

    complexity_bits_per_dim: Float64Array
    """The size of the image as a lossless WebP file, [N]."""

    def __len__(self) -> int:
        return len(self.log_likelihood)

    def features(self, dimensions: int) -> Float64Array:
        """The features, [N, F]; not finite for an image whose log-likelihood is not.

        Args:
            dimensions: D.
        """
        finite = np.isfinite(self.log_likelihood)
        with np.errstate(invalid="ignore"):  # levels may be infinite with opposite signs
            columns = (
                bits_per_dim(self.log_prior.sum(axis=1), dimensions),
                bits_per_dim(self.log_det.sum(axis=1), dimensions),
                self.complexity_bits_per_dim,
            )
        return np.where(finite[:, None], np.stack(columns, axis=1), np.nan)
