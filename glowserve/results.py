"""What calls return beside scores, which are in `glowserve.scores`.

Shapes: N images, H W C, D = H * W * C.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from glowserve.images import UInt8Array


@dataclass(frozen=True)
class Samples:
    """N images that a model drew."""

    images: UInt8Array
    """[N, H, W, C]."""

    model: str
    """The model's name."""

    version: int
    """The model's version."""

    seed: int
    """Of the latents; the same seed gives the same images."""

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class Encodings:
    """The latents of N images."""

    latents: npt.NDArray[np.float32]
    """[N, D]; standard normal for images like the model's data."""

    mismatched_values: npt.NDArray[np.int64]
    """How many values of each image do not come back from its latent, [N]; 0: the latent holds it exactly."""

    model: str
    """The model's name."""

    version: int
    """The model's version."""

    def __len__(self) -> int:
        return len(self.latents)


@dataclass(frozen=True)
class ModelInfo:
    """A version of a model, and how it is."""

    name: str
    version: int
    height: int
    """Of its images; it and what follows is 0 while the version is LOADING or REFUSED."""
    width: int
    channels: int
    n_bits: int
    """Bits of each value that the model sees."""
    state: str
    """SERVING, FAILING, LOADING or REFUSED: see `ModelState` in glow_service.proto; UNSPECIFIED if the server says
    none of these."""
    reason: str = ""
    """Why it is not SERVING, in a sentence."""
