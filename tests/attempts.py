"""What samples are, by their definition: the image of the first attempt that is finite."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from glowserve.images import UInt8Array
from glowserve.runtime.engine import Engine
from glowserve.runtime.randomness import latents


@dataclass(frozen=True)
class Attempts:
    """N samples, 8x8x1."""

    images: UInt8Array
    """[N, H, W, C]; 0 where there is none."""

    finite: npt.NDArray[np.bool_]
    """Whether there is one, [N]."""

    redrawn: int
    """How many attempts were not the first."""

    @property
    def indices(self) -> list[int]:
        """Of the samples with an image."""
        return np.flatnonzero(self.finite).tolist()

    @property
    def not_finite(self) -> list[int]:
        """The indices of the others."""
        return np.flatnonzero(~self.finite).tolist()

    @property
    def drawn(self) -> UInt8Array:
        """The images of the samples that have one."""
        return self.images[self.finite]


def attempts(
    engine: Engine, seed: int, n: int, temperature: float = 1.0, *, first: int = 0, most: int = 3
) -> Attempts:
    """Samples `first` to `first + n - 1` of a seed, each in every attempt."""
    decoded = [
        engine.reverse(latents(seed, first, n, 64, temperature, attempt=attempt)) for attempt in range(most)
    ]
    finite = np.stack([np.isfinite(each.pixels).all(axis=(1, 2, 3)) for each in decoded])  # [attempts, N]
    images = np.zeros_like(decoded[0].image)
    for each, good in reversed(list(zip(decoded, finite, strict=True))):
        images[good] = each.image[good]
    failed = np.logical_and.accumulate(~finite)
    return Attempts(images, finite.any(axis=0), int(failed[:-1].sum()))
