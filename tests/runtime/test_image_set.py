"""The set of a call on any runner: what it is made of, what it refuses, and what it answers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from glowserve.images import UInt8Array
from glowserve.messages import images_message
from glowserve.runtime import image_set
from glowserve.runtime.config import Limits
from glowserve.runtime.engine import Engine, Float32Array, Forward
from glowserve.runtime.errors import InvalidRequestError, NotCalibratedError
from glowserve.runtime.image_set import ImageSet
from glowserve.runtime.randomness import DEFAULT_SEED, dequantization_noise
from glowserve.runtime.repository import Bundle, open_bundle
from glowserve.runtime.runner import EngineRunner, run_now
from glowserve.scores import Asked
from glowserve.scores.sets import SetTest
from glowserve.v1 import glow_service_pb2 as pb
from tests.service.bundles import without_calibration


class Runner(EngineRunner):
    """Can spoil images of the results."""

    def __init__(self, bundle: Bundle, engine: Engine) -> None:
        super().__init__(bundle, engine, Limits())
        self.spoiled: list[int] = []
        """Images whose log-likelihood is not finite."""

    async def forward(self, images: UInt8Array, noise: Float32Array) -> Forward:
        result = await super().forward(images, noise)
        nats = result.log_likelihood.copy()
        nats[self.spoiled] = np.nan
        return replace(result, log_likelihood=nats)


@pytest.fixture
def runner(bundle: Bundle, engine: Engine) -> Runner:
    return Runner(bundle, engine)


def request(images: UInt8Array, **model: Any) -> pb.ScoreSetRequest:
    return pb.ScoreSetRequest(model=pb.ModelSpec(**model), images=images_message(images))


def answer(runner: EngineRunner, *parts: UInt8Array) -> pb.ScoreSetResponse:
    images = ImageSet()
    for part in parts:
        images.add(run_now(images.score(runner, request(part))))
    return run_now(images.response(runner.compute))


def test_the_answer_is_the_test_of_the_features_of_all_images(
    runner: Runner, engine: Engine, digits: UInt8Array
) -> None:
    images, dimensions = digits[:60], 64
    forward = engine.forward(images, dequantization_noise(DEFAULT_SEED, images))
    scorer, calibration = runner.scorer, runner.scorer.calibration
    assert calibration is not None
    parts = scorer.parts(forward, images)
    features = parts.features(dimensions)
    test = SetTest(
        features, calibration.images.features(dimensions), calibration.fitting.features(dimensions)
    )
    while not test.run():
        pass
    single = scorer.score(
        forward,
        DEFAULT_SEED,
        Asked(scores=frozenset({"anomaly_p_value", "anomalous"})),
        reference=forward,
        p_values=scorer.p_values(parts),
    )
    assert single.anomalous is not None

    found = answer(runner, images[:1], images[1:8], images[8:])

    assert found.p_value == pytest.approx(test.p_value, abs=0.01)  # other batches round differently
    assert found.resolution == test.resolution == 1e-4
    assert (found.n, found.calibration_images, found.not_finite) == (60, len(calibration.images), 0)
    assert found.bits_per_dim == pytest.approx(single.bits_per_dim.mean(), rel=1e-5)
    assert found.anomalous == pytest.approx(single.anomalous.mean(), abs=0.02)
    assert found.false_alarm_rate == single.false_alarm_rate
    assert (found.model.name, found.model.version) == ("digits", 1)


def test_images_that_do_not_belong_are_a_set_that_does_not(runner: Runner, digits: UInt8Array) -> None:
    assert answer(runner, digits[:50]).p_value > 1e-3
    assert answer(runner, 255 - digits[:50]).p_value == 1e-4


def test_images_that_are_not_finite_are_counted_and_left_out_of_means(
    runner: Runner, digits: UInt8Array
) -> None:
    runner.spoiled = [0, 3, 4, 5, 6, 7, 8, 9]
    found = answer(runner, digits[:40])
    assert found.not_finite == 8
    assert found.p_value <= 0.001
    runner.spoiled = []
    rest = np.delete(digits[:40], [0, 3, 4, 5, 6, 7, 8, 9], axis=0)
    assert found.bits_per_dim == pytest.approx(answer(runner, rest).bits_per_dim, rel=1e-5)
    runner.spoiled = [0, 1]
    found = answer(runner, digits[:2])
    assert (found.bits_per_dim, found.not_finite, found.anomalous) == (np.inf, 2, 1)
    assert not found.features


@pytest.mark.parametrize("n", [0, 1])
def test_a_set_of_fewer_than_two_images_is_refused(runner: Runner, digits: UInt8Array, n: int) -> None:
    with pytest.raises(
        InvalidRequestError, match=f"images: the set has {n}; a set has 2 to 100000"
    ) as caught:
        answer(runner, *[digits[:1]] * n)
    assert caught.value.field == "images"


def test_a_set_of_too_many_images_is_refused_before_the_excess_is_decoded(
    runner: Runner, digits: UInt8Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_set, "MAX_IMAGES", 10)
    assert answer(runner, digits[:4], digits[:6]).n == 10
    with pytest.raises(InvalidRequestError, match="images: 7 images after 4; a set has at most 10") as caught:
        answer(runner, digits[:4], digits[:7])
    assert caught.value.field == "images"


def test_a_request_may_name_the_model_of_the_first_one_or_none(runner: Runner, digits: UInt8Array) -> None:
    images = ImageSet()
    assert images.select(pb.ModelSpec()) == pb.ModelSpec()
    run_now(images.score(runner, request(digits[:1])))
    for name, version in (("", 0), ("digits", 0), ("", 1), ("digits", 1)):
        assert images.select(pb.ModelSpec(name=name, version=version)) == pb.ModelSpec(
            name="digits", version=1
        )
    for field, value in (("name", "other"), ("version", 2)):
        with pytest.raises(
            InvalidRequestError, match=rf"model\.{field} is .*; this set began with digits version 1"
        ) as caught:
            images.select(pb.ModelSpec(**{field: value}))
        assert caught.value.field == f"model.{field}"


def test_a_bundle_without_a_calibration_says_which_command_adds_it(
    bundle: Bundle, engine: Engine, digits: UInt8Array, tmp_path: Path
) -> None:
    without_calibration(bundle.path, tmp_path / "digits" / "1")
    uncalibrated = EngineRunner(open_bundle(tmp_path / "digits" / "1"), engine, Limits())
    with pytest.raises(
        NotCalibratedError,
        match=r"a set's p-value: digits version 1 has no calibration; `glowserve calibrate REPOSITORY/digits --data",
    ):
        answer(uncalibrated, digits[:2])
