"""The operations of a model on arrays: score, explain, sample, encode, decode, interpolate, manipulate.

They run on any runner.

Shapes: N images, S steps, H W C, D = H * W * C.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, cast

import numpy as np
import numpy.typing as npt

from glowserve.images import UInt8Array
from glowserve.mismatch import Int64Array, mismatched_values
from glowserve.pictures import InvalidPictureError, Pictures
from glowserve.results import Explanations
from glowserve.runtime.checks import (
    BoolArray,
    finite_images,
    require_finite_images,
    require_finite_latents,
)
from glowserve.runtime.draws import Draw, draw_classes, draw_latents
from glowserve.runtime.engine import Float32Array, Forward, Reverse
from glowserve.runtime.given_classes import GivenClasses
from glowserve.runtime.inputs import ImageSource, invalid_picture
from glowserve.runtime.interpolation import interpolation_path
from glowserve.runtime.randomness import ATTEMPTS, DEFAULT_SEED, ENCODING_NOISE, dequantization_noise
from glowserve.runtime.runner import SERIALIZATION, Runner, Work
from glowserve.scores import NOTHING_ELSE, Asked, Needs, Scores
from glowserve.scores.parts import Parts

Float64Array = npt.NDArray[np.float64]

_TOO_FAR = "strengths: image {} has a latent that is not finite; lower the strength"
# How much longer a value takes to be compressed than to get its noise.
_CODEC = 16


@dataclass(frozen=True)
class Drawn:
    """N samples."""

    images: UInt8Array
    """[N, H, W, C]; 0 where `finite` is false."""

    finite: BoolArray
    """Whether each is finite, [N]. The others have no image."""


@dataclass(frozen=True)
class Encoded:
    """The latents of N images."""

    latents: Float32Array
    """[N, D]."""

    mismatched_values: Int64Array
    """How many values of each image are in another bin after its latent is decoded, [N]."""


class _Prepared(NamedTuple):
    """N images, and what the forward graph takes beside them."""

    images: UInt8Array
    noise: Float32Array
    complexity: Float64Array | None
    """[N]; None if it is not needed."""


async def score(
    runner: Runner,
    images: ImageSource | Pictures,
    seed: int,
    asked: Asked = NOTHING_ELSE,
    classes: Int64Array | None = None,
) -> Scores:
    """Scores images.

    Args:
        runner: runs the model.
        images: the N images.
        seed: the seed of the dequantization noise.
        asked: which scores are computed beside those that are in every answer; the bundle has what they need.
        classes: of the images, by number, [N]: the scores are those of log p(x | c); None for those of log p(x).

    Raises:
        NotCalibratedError: the bundle has no calibration of images given their classes.
        GlowserveError: an image cannot be decoded, or the runner refuses the rows.
    """
    if classes is None:
        return await _score(runner, images, seed, asked, runner.p_values)
    given = cast("Runner", GivenClasses(runner, classes))
    return await _score(given, images, seed, asked, given.p_values)


async def score_with_parts(
    runner: Runner, images: ImageSource | Pictures, asked: Asked
) -> tuple[Scores, Parts]:
    """Scores images with the noise of the default seed, and keeps their parts.

    Args:
        runner: runs the model.
        images: the N images.
        asked: which scores are computed; among them one that needs the images' parts.

    Raises:
        GlowserveError: an image cannot be decoded, or the runner refuses the rows.
    """
    found = list[Parts]()

    async def p_values(array: UInt8Array, forward: Forward) -> Float64Array:
        measure = partial(runner.scorer.parts, forward, array)
        found.append(await runner.compute(Work(measure, len(array), forward.latent.nbytes)))
        return runner.scorer.p_values(found[0])

    scores = await _score(runner, images, DEFAULT_SEED, asked, p_values)
    return scores, found[0]


async def _score(
    runner: Runner,
    images: ImageSource | Pictures,
    seed: int,
    asked: Asked,
    p_values: Callable[[UInt8Array, Forward], Awaitable[Float64Array]],
) -> Scores:
    """The scores of images. `p_values` computes those, from images and their output with the default seed's noise."""
    array, noise, complexity = await _prepare(
        runner, await _decoded(runner, images), seed, with_complexity=Needs.CODEC in asked.needs
    )
    forward, likelihoods = await runner.score(array, noise)
    reference = forward
    if Needs.REFERENCE in asked.needs and seed != DEFAULT_SEED:
        noise = await runner.compute(
            Work(lambda: dequantization_noise(DEFAULT_SEED, array), len(array), array.nbytes)
        )
        reference = await runner.forward(array, noise)
    scores = runner.scorer.score(
        forward,
        seed,
        asked,
        likelihoods=likelihoods,
        reference=reference if Needs.REFERENCE in asked.needs else None,
        p_values=await p_values(array, reference) if Needs.DENSITY in asked.needs else None,
        complexity=complexity,
        draws=await _later_draws(runner, array, seed, asked.importance_samples),
    )
    runner.scored(scores)
    return scores


async def explain(runner: Runner, images: ImageSource | Pictures) -> Explanations:
    """Explains images, with the noise of the default seed.

    Args:
        runner: runs the model, whose bundle passes `check_explainable`.
        images: the N images.

    Raises:
        MissingFileError, BundleError, DeviceError: the graph cannot be opened.
        GlowserveError: an image cannot be decoded, or the runner refuses the rows.
    """
    await runner.open_explainer()  # first: while it opens, the images wait as they came
    source, scorer = await _decoded(runner, images), runner.scorer
    prepared = await _prepare(runner, source, DEFAULT_SEED, with_complexity=True)
    forward = await runner.forward(prepared.images, prepared.noise)
    deviations = await runner.explain(prepared.images, prepared.noise)
    manifest = runner.bundle.manifest

    def compare() -> Explanations:
        assert scorer.usual_parts is not None
        assert prepared.complexity is not None
        finite = np.isfinite(forward.log_likelihood)
        return Explanations(
            np.where(finite[:, None, None], deviations, np.float32(np.nan)),
            scorer.usual_parts.compare(scorer.parts(forward, prepared.images), prepared.complexity),
            finite,
            manifest.model,
            manifest.version,
        )

    return await runner.compute(Work(compare, source.count, deviations.nbytes, SERIALIZATION))


async def sample(runner: Runner, draws: Sequence[Draw]) -> Drawn:
    """Draws samples. Those that are not finite are drawn again, as often as the bundle's `RandomnessVersion` says.

    An attempt has a latent of its own, which depends on the draw alone: so does the sample, whatever else is drawn.

    Args:
        runner: runs the model.
        draws: the randomness of the N samples.

    Raises:
        GlowserveError: the runner refuses the rows.
    """
    decoded = await _draw(runner, draws, attempt=0)
    images, finite = decoded.image, finite_images(decoded)
    if finite.all():
        return Drawn(images, finite)
    images = images.copy()  # the runner's array may not be written to
    for attempt in range(1, ATTEMPTS[runner.bundle.manifest.randomness]):
        if not (again := np.flatnonzero(~finite).tolist()):
            break
        runner.redrawn(len(again))
        decoded = await _draw(runner, [draws[i] for i in again], attempt)
        images[again], finite[again] = decoded.image, finite_images(decoded)
    images[~finite] = 0  # the bytes that a graph makes of NaN mean nothing
    return Drawn(images, finite)


async def encode(runner: Runner, images: ImageSource | Pictures) -> Encoded:
    """Encodes images, and counts the values that differ when the latents are decoded again.

    Args:
        runner: runs the model.
        images: the N images.

    Raises:
        NotFiniteError: a latent is not finite.
        GlowserveError: an image cannot be decoded, or the runner refuses the rows.
    """
    array = await _array(runner, images)
    encoded = await _encode(runner, array)
    decoded = await runner.reverse(encoded)
    return Encoded(encoded, mismatched_values(array, decoded, runner.bundle.manifest.image.n_bits))


async def decode(runner: Runner, latents: Float32Array, *, what: str = "latents: row") -> UInt8Array:
    """Decodes latents to images, uint8 [N, H, W, C].

    Args:
        runner: runs the model.
        latents: float32 [N, D].
        what: the name of a row, for the message of an error.

    Raises:
        NotFiniteError: an image is not finite.
        GlowserveError: the runner refuses the rows.
    """
    decoded = await runner.reverse(latents)
    require_finite_images(decoded, what=what)
    return decoded.image


async def interpolate(runner: Runner, pair: ImageSource | Pictures, steps: int) -> UInt8Array:
    """Interpolates between two images along the path between their latents, uint8 [S, H, W, C], both ends included.

    Args:
        runner: runs the model.
        pair: the two images.
        steps: S, 2 or more.

    Raises:
        NotFiniteError: a latent or an image is not finite.
        GlowserveError: an image cannot be decoded, or the runner refuses the rows.
    """
    start, end = await _encode(runner, await _array(runner, pair))
    return await decode(runner, interpolation_path(start, end, steps), what="images: step")


async def manipulate(
    runner: Runner,
    given: ImageSource | Pictures | Float32Array,
    attributes: Sequence[str],
    strengths: Sequence[float],
) -> UInt8Array:
    """Moves an image, or a latent, along the sum of attributes' directions, uint8 [S, H, W, C].

    Args:
        runner: runs the model, whose bundle passes `check_attributes`.
        given: one image; or one latent, float32 [1, D].
        attributes: the names of the attributes.
        strengths: S multiples of the sum; finite.

    Raises:
        NotFiniteError: a latent or an image is not finite.
        GlowserveError: the image cannot be decoded, or the runner refuses the rows.
    """
    latents = given if isinstance(given, np.ndarray) else await _encode(runner, await _array(runner, given))
    size = len(strengths) * latents.nbytes
    path = await runner.compute(
        Work(lambda: runner.attributes.path(latents[0], attributes, strengths), len(strengths), size)
    )
    require_finite_latents(path, _TOO_FAR)
    return await decode(runner, path, what="strengths: image")


async def _later_draws(
    runner: Runner, images: UInt8Array, seed: int, importance_samples: int
) -> list[Float32Array]:
    """The log-likelihoods of images with each draw of a seed's noise but the first, [N] each.

    As many draws run at once as fit in a batch; of their latents nothing is kept.
    """
    n, found = len(images), list[Float32Array]()
    together = max(1, runner.limits.max_batch_size // n)
    for first in range(1, importance_samples, together):
        draws = range(first, min(first + together, importance_samples))

        def prepare(draws: range = draws) -> tuple[UInt8Array, Float32Array]:
            noise = [dequantization_noise(seed, images, draw=draw) for draw in draws]
            return np.concatenate([images] * len(draws)), np.concatenate(noise)

        rows = len(draws) * n
        array, noise = await runner.compute(Work(prepare, rows, rows * images[0].size))
        found += np.split((await runner.forward(array, noise)).log_likelihood, len(draws))
    return found


async def _draw(runner: Runner, draws: Sequence[Draw], attempt: int) -> Reverse:
    manifest = runner.bundle.manifest
    size = manifest.image.latent_size
    latent = await runner.compute(
        Work(lambda: draw_latents(draws, size, attempt), len(draws), 4 * len(draws) * size)
    )
    return await runner.reverse(latent, draw_classes(draws, [each.share for each in manifest.flow.classes]))


async def _decoded(runner: Runner, images: ImageSource | Pictures) -> ImageSource:
    """The images, of which pictures are decoded."""
    if isinstance(images, ImageSource):
        return images
    try:
        array = await runner.decode(images)
    except InvalidPictureError as error:
        raise invalid_picture(error, images) from None
    return ImageSource(len(array), 0, lambda: array)


async def _prepare(runner: Runner, source: ImageSource, seed: int, *, with_complexity: bool) -> _Prepared:
    """Reads images, and computes what depends on them alone."""

    def prepare() -> _Prepared:
        images = source.read()
        return _Prepared(
            images,
            dequantization_noise(seed, images),
            runner.scorer.complexity(images) if with_complexity else None,
        )

    values = source.count * runner.bundle.manifest.image.latent_size
    size = source.size + values * (1 + _CODEC * with_complexity)
    return await runner.compute(Work(prepare, source.count, size))


async def _array(runner: Runner, images: ImageSource | Pictures) -> UInt8Array:
    """The images, uint8 [N, H, W, C]."""
    source = await _decoded(runner, images)
    return await runner.compute(Work(source.read, source.count, source.size))


async def _encode(runner: Runner, images: UInt8Array) -> Float32Array:
    noise = np.full(images.shape, ENCODING_NOISE, np.float32)
    latent = (await runner.forward(images, noise)).latent
    require_finite_latents(latent)
    return latent
