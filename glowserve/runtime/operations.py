"""What a bundle is asked for: score, sample, encode, decode, interpolate. Arrays in, arrays out, over any runner.

Shapes: N images, S steps, H W C, D = H * W * C.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from glowserve.images import UInt8Array
from glowserve.runtime.checks import (
    Int64Array,
    mismatched_values,
    require_finite_images,
    require_finite_latents,
)
from glowserve.runtime.engine import Float32Array
from glowserve.runtime.inputs import ImageSource
from glowserve.runtime.interpolation import interpolation_path
from glowserve.runtime.randomness import ENCODING_NOISE, dequantization_noise, latents
from glowserve.runtime.runner import Runner, Work
from glowserve.scores import Scores


@dataclass(frozen=True)
class Draw:
    """One sample: the latent with this index among those of a seed, times the temperature."""

    seed: int
    index: int
    temperature: float


@dataclass(frozen=True)
class Encoded:
    """The latents of N images."""

    latents: Float32Array
    """[N, D]."""

    mismatched_values: Int64Array
    """How many values of each image do not come back from its latent, [N]."""


async def score(runner: Runner, images: ImageSource, seed: int) -> Scores:
    """Scores of images.

    Args:
        runner: what runs the rows.
        images: of the model's shape once they are read.
        seed: of the dequantization noise.

    Raises:
        GlowserveError: an image cannot be read, or the runner does not run the rows.
    """

    def prepare() -> tuple[UInt8Array, Float32Array]:
        array = images.read()
        return array, dequantization_noise(seed, array)

    size = images.size + images.count * runner.bundle.manifest.image.latent_size
    array, noise = await runner.compute(Work(prepare, images.count, size))
    return runner.scorer.score(await runner.forward(array, noise), seed)


async def sample(
    runner: Runner, draws: Sequence[Draw], *, first: int = 0, what: str = "temperature: sample"
) -> UInt8Array:
    """Images of drawn latents, uint8 [N, H, W, C].

    Args:
        runner: what runs the rows.
        draws: the N samples.
        first: the number of the first row, for an error's message.
        what: what a row is called there.

    Raises:
        NotFiniteError: the model makes no finite image of a latent.
        GlowserveError: the runner does not run the rows.
    """
    latent_size = runner.bundle.manifest.image.latent_size

    def prepare() -> Float32Array:
        return np.concatenate(
            [latents(draw.seed, draw.index, 1, latent_size, draw.temperature) for draw in draws]
        )

    drawn = await runner.compute(Work(prepare, len(draws), 4 * len(draws) * latent_size))
    return await decode(runner, drawn, first=first, what=what)


async def encode(runner: Runner, images: ImageSource) -> Encoded:
    """Latents of images, and whether they hold the images exactly.

    Raises:
        NotFiniteError: a latent is not finite.
        GlowserveError: an image cannot be read, or the runner does not run the rows.
    """
    array = await runner.compute(Work(images.read, images.count, images.size))
    encoded = await _encode(runner, array)
    decoded = await runner.reverse(encoded)
    return Encoded(encoded, mismatched_values(array, decoded, runner.bundle.manifest.image.n_bits))


async def decode(
    runner: Runner, latents: Float32Array, *, first: int = 0, what: str = "latents: row"
) -> UInt8Array:
    """Images of latents, uint8 [N, H, W, C]; for the arguments see `sample`.

    Raises:
        NotFiniteError: the model makes no finite image of a latent.
        GlowserveError: the runner does not run the rows.
    """
    decoded = await runner.reverse(latents)
    require_finite_images(decoded, first=first, what=what)
    return decoded.image


async def interpolate(runner: Runner, pair: ImageSource, steps: int) -> UInt8Array:
    """Images between two, both included, along the path between their latents, uint8 [S, H, W, C].

    Args:
        runner: what runs the rows.
        pair: the two images.
        steps: S, 2 or more.

    Raises:
        NotFiniteError: a latent or an image is not finite.
        GlowserveError: an image cannot be read, or the runner does not run the rows.
    """
    array = await runner.compute(Work(pair.read, pair.count, pair.size))
    start, end = await _encode(runner, array)
    return await decode(runner, interpolation_path(start, end, steps), what="images: step")


async def _encode(runner: Runner, images: UInt8Array) -> Float32Array:
    noise = np.full(images.shape, ENCODING_NOISE, np.float32)
    latent = (await runner.forward(images, noise)).latent
    require_finite_latents(latent)
    return latent
