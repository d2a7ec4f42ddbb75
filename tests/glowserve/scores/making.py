"""Makes parts of images from random numbers."""

from __future__ import annotations

from dataclasses import fields

import numpy as np

from glowserve.scores.density import Density, Gaussian
from glowserve.scores.parts import Parts, widths


def random_parts(rng: np.random.Generator, n: int, *, image_channels: int = 1, levels: int = 2) -> Parts:
    """Parts of n images, which depend on one another as far as they have the same log-likelihood."""
    nats = rng.normal(-100, 10, n)
    return Parts(
        log_likelihood=nats,
        **{
            name: 0.1 * nats[:, None] + rng.normal(size=(n, width))
            for name, width in widths(image_channels, levels).items()
        },
    )


def standard_density(parts: Parts) -> Density:
    """A density of standard normal numbers around the parts of a first image."""
    levels = np.concatenate([parts.log_prior[0], parts.log_det[0]])

    def around(mean: np.ndarray) -> Gaussian:
        return Gaussian(mean=mean, whitening=np.eye(len(mean)))

    return Density(
        levels=around(levels),
        channels=around(parts.channels[0]),
        contrasts=around(parts.contrasts[0]),
        bits=np.asarray(2.0),
        bits_by_contrast=np.zeros(parts.contrasts.shape[1]),
        median=np.ones(4),
        scale=np.ones(4),
    )


def taken(parts: Parts, rows: object) -> Parts:
    """The parts of some of the images."""
    return Parts(**{each.name: getattr(parts, each.name)[rows] for each in fields(parts)})
