"""Fits the density of the features of images: see `glowserve.scores.density`.

The fit is scikit-learn's, as the mixture of a few Gaussians is no place for an EM algorithm of our own; a service only
evaluates it, and needs no scikit-learn.

Shapes: N images, F features, K components.
"""

from __future__ import annotations

import warnings

import numpy as np
import numpy.typing as npt
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture

from glowserve.scores.density import Mixture

Float64Array = npt.NDArray[np.float64]

# More tell hardly more of photographs.
_MOST_COMPONENTS = 4
# A component has ten parameters: five images for each.
_IMAGES_PER_COMPONENT = 50
# Added to each variance, in units of the features' own. With few images more is added, since they hardly know their own
# covariance: the density becomes rounder, and at two images is nearly a ball.
_RIDGE, _RIDGE_OF_ONE_IMAGE = 1e-2, 1.0
_RESTARTS, _SEED = 5, 0


def fit_mixture(features: Float64Array) -> Mixture:
    """Fits a mixture of Gaussians to features, [N, F], N at least 1. The same features give the same mixture."""
    n = len(features)
    centre, scale = features.mean(axis=0), features.std(axis=0)
    scale = np.where(scale > 1e-6, scale, 1e-6)  # such as the complexity of images that are all alike
    standard = (features - centre) / scale
    model = GaussianMixture(
        max(1, min(_MOST_COMPONENTS, n // _IMAGES_PER_COMPONENT)),
        covariance_type="full",
        reg_covar=_RIDGE + _RIDGE_OF_ONE_IMAGE / n,
        n_init=_RESTARTS,
        random_state=_SEED,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # nearly converged is as good
        model.fit(standard if n > 1 else np.repeat(standard, 2, axis=0))  # it takes two
    # The precision's Cholesky factor A has (z - mean) A standard normal, and z = (x - centre) / scale.
    return Mixture(
        weights=model.weights_ / model.weights_.sum(),
        means=centre + scale * model.means_,
        whitening=model.precisions_cholesky_ / scale[:, None],
    )
