"""Samples that are not finite are drawn again, alone, as often as the bundle's RandomnessVersion says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from glowserve.runtime import operations
from glowserve.runtime.config import Limits
from glowserve.runtime.draws import Draw
from glowserve.runtime.engine import Engine, Float32Array, Int64Array, Reverse
from glowserve.runtime.repository import Bundle, newest_bundle
from glowserve.runtime.runner import EngineRunner, run_now
from tests.attempts import attempts
from tests.service.bundles import with_randomness

N = 60


class Runner(EngineRunner):
    """Records how many rows each round has, and how many samples are announced to be drawn again."""

    def __init__(self, bundle: Bundle, engine: Engine) -> None:
        super().__init__(bundle, engine, Limits())
        self.rounds: list[int] = []
        self.announced: list[int] = []

    def redrawn(self, samples: int) -> None:
        self.announced.append(samples)

    async def reverse(self, latents: Float32Array, classes: Int64Array | None = None) -> Reverse:
        self.rounds.append(len(latents))
        decoded = await super().reverse(latents, classes)
        decoded.image.flags.writeable = False  # as the rows of a batch may be
        return decoded


@pytest.fixture
def runner(explosive_repository: Path, explosive_engine: Engine) -> Runner:
    return Runner(newest_bundle(explosive_repository / "digits"), explosive_engine)


def draws(seed: int, n: int = N, temperature: float = 1.0) -> list[Draw]:
    return [Draw(seed, index, temperature) for index in range(n)]


def test_a_sample_is_the_image_of_its_first_finite_attempt(runner: Runner, explosive_engine: Engine) -> None:
    expected = attempts(explosive_engine, 5, N)
    assert 0 < len(expected.not_finite) < N / 3
    sampled = run_now(operations.sample(runner, draws(5)))
    np.testing.assert_array_equal(sampled.finite, expected.finite)
    np.testing.assert_array_equal(sampled.images, expected.images)


def test_only_rows_that_are_not_finite_are_drawn_again_in_one_round_each_and_announced(
    runner: Runner, explosive_engine: Engine
) -> None:
    run_now(operations.sample(runner, draws(5)))
    first, *again = runner.rounds
    left = [len(attempts(explosive_engine, 5, N, most=most).not_finite) for most in (1, 2)]
    assert (first, again) == (N, left)
    assert runner.announced == left


def test_finite_samples_are_drawn_once(bundle: Bundle, engine: Engine) -> None:
    runner = Runner(bundle, engine)
    assert run_now(operations.sample(runner, draws(5, temperature=0.5))).finite.all()
    assert (runner.rounds, runner.announced) == ([N], [])


def test_a_sample_does_not_depend_on_the_others(runner: Runner) -> None:
    together = run_now(operations.sample(runner, draws(5)))
    mixed = [Draw(6, 0, 1.0), *draws(5)[::-7], Draw(6, 1, 3e38)]
    among = run_now(operations.sample(runner, mixed))
    np.testing.assert_array_equal(among.finite[1:-1], together.finite[::-7])
    np.testing.assert_array_equal(among.images[1:-1], together.images[::-7])
    for index in range(0, N, 5):
        alone = run_now(operations.sample(runner, [Draw(5, index, 1.0)]))
        assert alone.finite[0] == together.finite[index]
        np.testing.assert_array_equal(alone.images[0], together.images[index])


def test_what_is_never_finite_has_no_image_after_three_attempts(runner: Runner) -> None:
    sampled = run_now(operations.sample(runner, draws(5, 3, 3e38)))
    assert not sampled.finite.any()
    assert not sampled.images.any()
    assert runner.rounds == [3, 3, 3]


def test_samples_of_a_bundle_of_randomness_1_keep_their_one_attempt(
    explosive_repository: Path, explosive_engine: Engine, tmp_path: Path
) -> None:
    with_randomness(explosive_repository / "digits" / "1", tmp_path / "digits" / "1", 1)
    runner = Runner(newest_bundle(tmp_path / "digits"), explosive_engine)
    expected = attempts(explosive_engine, 5, N, most=1)
    assert len(expected.not_finite) > N / 4
    sampled = run_now(operations.sample(runner, draws(5)))
    np.testing.assert_array_equal(sampled.finite, expected.finite)
    np.testing.assert_array_equal(sampled.images, expected.images)
    assert runner.rounds == [N]
