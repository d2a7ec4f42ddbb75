"""A density of the features of images: a mixture of Gaussians.

The likelihood alone does not tell the images of one data set from those of another (Nalisnick et al. 2019,
arXiv:1810.09136). A density of several statistics of a model, fitted to images that it was not trained on, does better:
the "density of states" of Morningstar et al. 2021 (arXiv:2006.09273), which multiplies one-dimensional densities. Ours
is joint, since the statistics of an image depend on one another, and has the image's complexity among them, after Serrà
et al. 2020 (arXiv:1909.11480). docs/scores.md has the comparison.

Shapes: N images, F features, K components.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Float64Array = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """A mixture of Gaussians. `glowserve_export.density` fits one."""

    weights: Float64Array
    """[K], above 0; their sum is 1."""

    means: Float64Array
    """[K, F]."""

    whitening: Float64Array
    """[K, F, F]: matrix A with A A^T the inverse of the covariance, so that (x - mean) A is standard normal."""

    def oddness(self, features: Float64Array) -> Float64Array:
        """-log density, [N]; infinite where a feature is not finite, or the density is zero in float64.

        Args:
            features: [N, F].
        """
        finite = np.asarray(np.isfinite(features).all(axis=1))
        centred = np.where(finite[:, None], features, 0.0) - self.means[:, None]  # [K, N, F]
        with np.errstate(over="ignore", invalid="ignore"):
            distance = np.square(centred @ self.whitening).sum(axis=2)  # [K, N]
            constants = (
                np.log(self.weights)
                + np.linalg.slogdet(self.whitening)[1]
                - 0.5 * features.shape[1] * math.log(2 * math.pi)
            )
            oddness: Float64Array = -np.logaddexp.reduce(constants[:, None] - 0.5 * distance, axis=0)
        return np.where(finite & ~np.isnan(oddness), oddness, np.inf)
