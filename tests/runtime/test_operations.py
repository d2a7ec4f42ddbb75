"""The operations: each gives what the engine and the randomness give for the same images, latents and seeds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from glowserve.images import UInt8Array, encode_png
from glowserve.pictures import Pictures
from glowserve.runtime import operations
from glowserve.runtime.attributes import Attributes
from glowserve.runtime.config import Limits
from glowserve.runtime.draws import Draw
from glowserve.runtime.engine import Engine, Float32Array, Forward, Int64Array, Reverse
from glowserve.runtime.errors import InvalidRequestError, NotFiniteError
from glowserve.runtime.inputs import ImageSource
from glowserve.runtime.interpolation import interpolation_path
from glowserve.runtime.randomness import ENCODING_NOISE, dequantization_noise, latents
from glowserve.runtime.repository import Bundle
from glowserve.runtime.runner import PREPARATION, EngineRunner, T, Work, run_now
from glowserve.scores import COLUMNS, Scorer

# At temperature 1, a model that was trained for seconds draws a sample that is not finite now and then.
COOL = 0.7


class Runner(EngineRunner):
    """Records the CPU work, and can spoil rows of the results."""

    def __init__(self, bundle: Bundle, engine: Engine) -> None:
        super().__init__(bundle, engine, Limits())
        self.work: list[tuple[int, int, str]] = []
        self.spoiled: list[int] = []
        """Rows that become NaN."""

    async def compute(self, work: Work[T]) -> T:
        self.work.append((work.images, work.size, work.stage))
        return await super().compute(work)

    async def forward(self, images: UInt8Array, noise: Float32Array) -> Forward:
        result = await super().forward(images, noise)
        return replace(result, latent=self._spoil(result.latent))

    async def reverse(self, latents: Float32Array, classes: Int64Array | None = None) -> Reverse:
        result = await super().reverse(latents, classes)
        return replace(result, pixels=self._spoil(result.pixels))

    def _spoil(self, array: Float32Array) -> Float32Array:
        array[self.spoiled] = np.nan
        return array


@pytest.fixture
def runner(bundle: Bundle, engine: Engine) -> Runner:
    return Runner(bundle, engine)


def source(images: UInt8Array) -> ImageSource:
    """Images of a tensor that takes work to read, of 1000 bytes."""
    return ImageSource(len(images), 1000, lambda: images)


def encode(engine: Engine, images: UInt8Array) -> Float32Array:
    """Latents by the engine alone."""
    return engine.forward(images, np.full(images.shape, ENCODING_NOISE, np.float32)).latent


@pytest.mark.parametrize("seed", [0, 5, 2**64 - 1])
def test_scores_are_those_of_the_engine_with_the_noise_of_the_seed(
    runner: Runner, engine: Engine, bundle: Bundle, digits: UInt8Array, seed: int
) -> None:
    images = digits[:9]
    scores = run_now(operations.score(runner, source(images), seed))
    forward = engine.forward(images, dequantization_noise(seed, images))
    expected = Scorer(bundle.manifest).score(forward, seed)
    for name in COLUMNS:
        np.testing.assert_array_equal(getattr(scores, name), getattr(expected, name))
    assert (scores.model, scores.version, scores.seed) == ("digits", 1, seed)


def test_samples_are_the_engines_images_of_the_latents_of_the_draws(runner: Runner, engine: Engine) -> None:
    draws = [Draw(3, 0, COOL), Draw(3, 7, COOL), Draw(2**64 - 1, 1, 0.0), Draw(4, 0, 0.5)]
    drawn = [latents(each.seed, each.index, 1, 64, each.temperature) for each in draws]
    expected = engine.reverse(np.concatenate(drawn)).image
    sampled = run_now(operations.sample(runner, draws))
    np.testing.assert_array_equal(sampled.images, expected)
    assert sampled.finite.all()


def test_encodings_are_the_engines_latents_and_count_the_values_that_change(
    runner: Runner, engine: Engine, digits: UInt8Array
) -> None:
    images = digits[:9]
    encoded = run_now(operations.encode(runner, source(images)))
    np.testing.assert_array_equal(encoded.latents, encode(engine, images))
    changed = (engine.reverse(encoded.latents).image >> 4) != (images >> 4)
    np.testing.assert_array_equal(encoded.mismatched_values, changed.sum(axis=(1, 2, 3)))


def test_decoded_images_are_the_engines(runner: Runner, engine: Engine) -> None:
    drawn = latents(5, 0, 9, 64, COOL)
    np.testing.assert_array_equal(run_now(operations.decode(runner, drawn)), engine.reverse(drawn).image)


def test_interpolated_images_are_the_engines_on_the_path_between_the_latents(
    runner: Runner, engine: Engine, digits: UInt8Array
) -> None:
    pair = digits[:2]
    images = run_now(operations.interpolate(runner, source(pair), 9))
    expected = engine.reverse(interpolation_path(*encode(engine, pair), 9)).image
    np.testing.assert_array_equal(images, expected)


@pytest.fixture
def moving(runner: Runner) -> Runner:
    """Of a model with the attributes "up" and "down"."""
    ones = np.ones((2, 64), np.float32) * [[0.5], [-0.25]]
    runner.attributes = Attributes(("up", "down"), ones.astype(np.float32), np.ones(2, np.float32))
    return runner


def test_manipulated_images_are_the_engines_along_the_directions(
    moving: Runner, engine: Engine, digits: UInt8Array
) -> None:
    latent = encode(engine, digits[:1])
    for given in (source(digits[:1]), latent):
        images = run_now(operations.manipulate(moving, given, ["up", "down"], [0, 1, -2]))
        moved = latent + np.array([[0], [0.25], [-0.5]], np.float32)
        np.testing.assert_array_equal(images, engine.reverse(moved).image)


def test_a_strength_beyond_float32_is_named_by_its_index(moving: Runner) -> None:
    latent = np.full((1, 64), -3e38, np.float32)
    with pytest.raises(NotFiniteError, match="strengths: image 1 has a latent that is not finite") as caught:
        run_now(operations.manipulate(moving, latent, ["down"], [0, 3e38]))
    assert caught.value.images == 1


# Values that are not finite


def test_a_latent_of_an_image_that_is_not_finite_is_named_by_its_index(
    runner: Runner, digits: UInt8Array
) -> None:
    runner.spoiled = [1]
    for call in (
        operations.encode(runner, source(digits[:3])),
        operations.interpolate(runner, source(digits[:2]), 5),
    ):
        with pytest.raises(NotFiniteError, match="images: image 1 lies so far from the model's data"):
            run_now(call)


def test_a_decoded_image_that_is_not_finite_is_named_by_its_row(runner: Runner) -> None:
    runner.spoiled = [1, 3]
    with pytest.raises(NotFiniteError, match="latents: row 1 does not decode to a finite image") as caught:
        run_now(operations.decode(runner, latents(5, 0, 4, 64, COOL)))
    assert caught.value.images == 2


def test_a_step_that_is_not_finite_is_named_by_its_index(
    runner: Runner, digits: UInt8Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    reverse = EngineRunner.reverse

    async def spoiled(
        self: EngineRunner, latents: Float32Array, classes: Int64Array | None = None
    ) -> Reverse:
        result = await reverse(self, latents, classes)
        result.pixels[3] = np.inf
        return result

    monkeypatch.setattr(EngineRunner, "reverse", spoiled)
    with pytest.raises(NotFiniteError, match="images: step 3 does not decode to a finite image"):
        run_now(operations.interpolate(runner, source(digits[:2]), 5))


# CPU work


def test_images_are_decoded_and_noise_is_drawn_as_cpu_work(runner: Runner, digits: UInt8Array) -> None:
    run_now(operations.score(runner, source(digits[:3]), 0))
    run_now(operations.encode(runner, source(digits[:3])))
    run_now(operations.interpolate(runner, source(digits[:2]), 4))
    run_now(operations.sample(runner, [Draw(0, i, COOL) for i in range(5)]))
    assert runner.work == [
        (3, 1000 + 3 * 64, PREPARATION),
        (3, 1000, PREPARATION),
        (2, 1000, PREPARATION),
        (5, 4 * 5 * 64, PREPARATION),
    ]


def test_a_picture_that_cannot_be_decoded_ends_the_operation(runner: Runner, digits: UInt8Array) -> None:
    pictures = Pictures([encode_png(digits[0]), b"?"], (8, 8, 1), runner.bundle.preparation)
    for call in (
        operations.score(runner, pictures, 0),
        operations.encode(runner, pictures),
        operations.interpolate(runner, pictures, 3),
    ):
        with pytest.raises(
            InvalidRequestError, match=r"^images\.encoded\.data\[1\]: 1 bytes are not"
        ) as caught:
            run_now(call)
        assert caught.value.field == "images.encoded.data[1]"


def test_pictures_score_like_a_tensor(runner: Runner, digits: UInt8Array) -> None:
    pictures = Pictures([encode_png(each) for each in digits[:3]], (8, 8, 1), runner.bundle.preparation)
    scores = run_now(operations.score(runner, pictures, 0))
    expected = run_now(operations.score(runner, source(digits[:3]), 0))
    np.testing.assert_array_equal(scores.log_likelihood, expected.log_likelihood)


def test_a_tensor_that_cannot_be_read_ends_the_operation(runner: Runner) -> None:
    def fail() -> UInt8Array:
        raise InvalidRequestError("images.encoded.data[0]: 2 bytes are not a picture")

    for call in (
        operations.score(runner, ImageSource(1, 0, fail), 0),
        operations.encode(runner, ImageSource(1, 0, fail)),
        operations.interpolate(runner, ImageSource(2, 0, fail), 3),
    ):
        with pytest.raises(InvalidRequestError, match="2 bytes"):
            run_now(call)
