"""Running rows on an engine in batches, and coroutines without an event loop."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

from glowserve.images import UInt8Array
from glowserve.runtime.config import Limits
from glowserve.runtime.engine import Engine, Float32Array, Forward, Reverse
from glowserve.runtime.randomness import dequantization_noise, latents
from glowserve.runtime.repository import Bundle
from glowserve.runtime.runner import SERIALIZATION, EngineRunner, Work, run_now


class RecordingEngine:
    """Returns a result that depends on each row alone, and records the sizes of its batches."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def forward(self, images: UInt8Array, noise: Float32Array) -> Forward:
        self.sizes.append(len(images))
        rows = images.reshape(len(images), -1) + noise.reshape(len(images), -1)
        return Forward(rows.sum(axis=1), rows, rows[:, :2], -rows[:, :2])

    def reverse(self, latents: Float32Array) -> Reverse:
        self.sizes.append(len(latents))
        pixels = latents.reshape(-1, 2, 2, 1)
        return Reverse(pixels.astype(np.uint8), pixels)


def recording(bundle: Bundle, max_batch_size: int) -> tuple[EngineRunner, RecordingEngine]:
    engine: Any = RecordingEngine()
    return EngineRunner(bundle, engine, Limits(max_batch_size=max_batch_size)), engine


@pytest.mark.parametrize(
    ("rows", "sizes"), [(1, [1]), (3, [3]), (4, [4]), (5, [4, 1]), (8, [4, 4]), (11, [4, 4, 3])]
)
def test_rows_are_split_into_batches_and_the_results_concatenated_in_order(
    bundle: Bundle, rng: np.random.Generator, rows: int, sizes: list[int]
) -> None:
    runner, engine = recording(bundle, max_batch_size=4)
    images = rng.integers(0, 256, (rows, 2, 2, 1), dtype=np.uint8)
    noise = rng.random(images.shape, dtype=np.float32)
    drawn = rng.random((rows, 4), dtype=np.float32)
    forward, reverse = run_now(runner.forward(images, noise)), run_now(runner.reverse(drawn))
    assert engine.sizes == sizes + sizes
    for found, expected in (
        (forward, RecordingEngine().forward(images, noise)),
        (reverse, RecordingEngine().reverse(drawn)),
    ):
        for one, other in zip(vars(found).values(), vars(expected).values(), strict=True):
            np.testing.assert_array_equal(one, other)


def test_a_real_engine_gives_the_same_results_in_batches(
    bundle: Bundle, engine: Engine, digits: UInt8Array
) -> None:
    runner = EngineRunner(bundle, engine, Limits(max_batch_size=7))
    noise, drawn = dequantization_noise(0, digits[:20]), latents(0, 0, 20, 64, 0.7)
    forward, expected = run_now(runner.forward(digits[:20], noise)), engine.forward(digits[:20], noise)
    np.testing.assert_allclose(forward.log_likelihood, expected.log_likelihood, rtol=1e-6)
    reverse = run_now(runner.reverse(drawn))
    np.testing.assert_allclose(reverse.pixels, engine.reverse(drawn).pixels, atol=1e-3)


def test_cpu_work_is_done_in_the_callers_thread(bundle: Bundle) -> None:
    runner, _ = recording(bundle, 4)
    runner.expect(3)
    assert run_now(runner.compute(Work(lambda: "done", images=3, size=100, stage=SERIALIZATION))) == "done"


def test_a_runner_has_the_bundle_the_scorer_and_the_limits(bundle: Bundle) -> None:
    runner, engine = recording(bundle, 4)
    assert (runner.bundle, runner.limits) == (bundle, Limits(max_batch_size=4))
    scores = runner.scorer.score(engine.forward(np.zeros((1, 2, 2, 1), np.uint8), np.zeros((1, 2, 2, 1))), 9)
    assert (scores.model, scores.version, scores.seed) == ("digits", 1, 9)


# Coroutines without an event loop


def test_a_coroutine_that_never_waits_runs_without_an_event_loop() -> None:
    async def inner() -> int:
        return 2

    async def outer() -> int:
        return await inner() + await inner()

    assert run_now(outer()) == 4


def test_the_error_of_a_coroutine_is_raised() -> None:
    async def fail() -> None:
        raise KeyError("digits")

    with pytest.raises(KeyError, match="digits"):
        run_now(fail())


def test_a_coroutine_that_waits_is_closed_and_refused() -> None:
    closed: list[bool] = []

    async def wait() -> None:
        try:
            await asyncio.sleep(0)
        finally:
            closed.append(True)

    with pytest.raises(RuntimeError, match="the coroutine waits for something; run it in an event loop"):
        run_now(wait())
    assert closed == [True]


async def test_it_runs_in_a_running_event_loop_too(bundle: Bundle) -> None:
    runner, _ = recording(bundle, 4)
    assert run_now(runner.compute(Work(lambda: 1, images=1, size=1))) == 1
