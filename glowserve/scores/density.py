"""The oddness of images: how far out four statistics of their parts are among the fitting images.

The likelihood alone does not tell the images of one data set from those of another (Nalisnick et al. 2019,
arXiv:1810.09136). Several statistics of a model together, compared with those of images that it was not trained on, do
better: the "density of states" of Morningstar et al. 2021 (arXiv:2006.09273). Ours are

- the log-densities of the latents and the log-determinants, by level: their Mahalanobis distance;
- the means and energies of the channels of the latents: likewise;
- the contrasts of the image, which need no model: likewise;
- the bits/dim beyond those that images with such contrasts have: a likelihood ratio with a simple model (Ren et al.
  2019, arXiv:1906.02845; Serrà et al. 2020, arXiv:1909.11480), which is a regression here.

Each becomes the logarithm of the probability to be as large, and these are added (Fisher, "Statistical methods for
research workers", 1925, section 21.1). They depend on one another, which does no harm, as the sum is only ranked.
docs/scores.md has the comparison with other choices.

Shapes: N images, L levels, S contrasts, F numbers of a part, 4 statistics.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from glowserve.likelihood import bits_per_dim
from glowserve.scores.parts import Parts

Float64Array = npt.NDArray[np.float64]

STATISTICS = 4
"""How many statistics an image has."""

# Products of matrices of another height may differ in the last digits: an image is as odd in a batch of any size.
_DIGITS = 6


@dataclass(frozen=True, kw_only=True)
class Gaussian:
    """A Gaussian of F numbers. `glowserve_export.density` fits one."""

    mean: Float64Array
    """[F]."""

    whitening: Float64Array
    """[F, F]: matrix A with A A^T the inverse of the covariance, so that (x - mean) A is standard normal."""

    def distance(self, values: Float64Array) -> Float64Array:
        """The Mahalanobis distance of values, [N, F], from the mean, [N]."""
        distance: Float64Array = np.sqrt(np.square((values - self.mean) @ self.whitening).sum(axis=1))
        return distance


@dataclass(frozen=True, kw_only=True)
class Density:
    """What is known of the parts of the fitting images. `glowserve_export.density` fits it."""

    levels: Gaussian
    """Of the parts by level, F = 2 L."""

    channels: Gaussian
    """Of the channels of the latents."""

    contrasts: Gaussian
    """Of the contrasts, F = S."""

    bits: Float64Array
    """The mean bits/dim, []."""

    bits_by_contrast: Float64Array
    """How the expected bits/dim grow with each contrast, [S]."""

    median: Float64Array
    """Of each statistic, [4]."""

    scale: Float64Array
    """Of the upper tail of each statistic, as that of a logistic distribution, [4]."""

    def statistics(self, parts: Parts, dimensions: int) -> Float64Array:
        """The four statistics of images with finite parts, [N, 4]; large is odd.

        Args:
            parts: of the images.
            dimensions: D.
        """
        expected = self.bits + (parts.contrasts - self.contrasts.mean) @ self.bits_by_contrast
        return np.stack(
            [
                self.levels.distance(by_level(parts)),
                self.channels.distance(parts.channels),
                self.contrasts.distance(parts.contrasts),
                bits_per_dim(parts.log_likelihood, dimensions) - expected,
            ],
            axis=1,
        )

    def oddness(self, parts: Parts, dimensions: int) -> Float64Array:
        """Minus the sum of the log-probabilities of statistics as large, [N]; infinite if a part is not finite.

        Args:
            parts: of the images.
            dimensions: D.
        """
        finite = parts.finite
        with np.errstate(over="ignore", invalid="ignore"):
            standard = (self.statistics(parts, dimensions) - self.median) / self.scale
            oddness = np.logaddexp(0, standard).sum(axis=1).round(_DIGITS)
        return np.where(finite & ~np.isnan(oddness), oddness, np.inf)


def by_level(parts: Parts) -> Float64Array:
    """The parts by level, [N, 2 L]."""
    return np.concatenate([parts.log_prior, parts.log_det], axis=1)
