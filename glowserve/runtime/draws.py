"""The randomness of samples: the latents, and the classes under a class-conditional model.

Shapes: N samples, K classes, D latents of a sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from glowserve.runtime.engine import Float32Array, Int64Array
from glowserve.runtime.randomness import class_of_sample, latents


@dataclass(frozen=True)
class Draw:
    """The randomness of one sample: its latent is the one with this index of a seed, times the temperature."""

    seed: int
    """0 to 2^64 - 1."""

    index: int
    """0 or more."""

    temperature: float
    """The standard deviation of the latent."""

    class_number: int | None = None
    """Of a class-conditional model; None: it is drawn from p(c), by seed and index."""


def draw_latents(draws: Sequence[Draw], latent_size: int, attempt: int) -> Float32Array:
    """The latents of samples, [N, D].

    Args:
        draws: the randomness of the N samples.
        latent_size: D.
        attempt: see `latents`.
    """
    return np.concatenate(
        [latents(draw.seed, draw.index, 1, latent_size, draw.temperature, attempt=attempt) for draw in draws]
    )


def draw_classes(draws: Sequence[Draw], shares: Sequence[float]) -> Int64Array | None:
    """The classes of samples, by number, [N]; None if the model has no classes.

    Args:
        draws: the randomness of the N samples.
        shares: p(c), [K].
    """
    if not shares:
        return None
    numbers = [
        class_of_sample(draw.seed, draw.index, shares) if draw.class_number is None else draw.class_number
        for draw in draws
    ]
    return np.array(numbers, np.int64)
