"""The methods of GlowService, from request to response, on a runner in this process."""

from __future__ import annotations

from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from glowserve import messages
from glowserve.images import UInt8Array
from glowserve.runtime import glow_service
from glowserve.runtime.config import Limits
from glowserve.runtime.engine import Engine
from glowserve.runtime.errors import InvalidRequestError, NotFiniteError
from glowserve.runtime.glow_service import SampleCall
from glowserve.runtime.randomness import latents
from glowserve.runtime.repository import Bundle, newest_bundle
from glowserve.runtime.runner import PREPARATION, SERIALIZATION, EngineRunner, T, Work, run_now
from glowserve.v1 import glow_service_pb2 as pb
from tests.attempts import attempts

FORMATS = [pb.IMAGE_FORMAT_UNSPECIFIED, pb.IMAGE_FORMAT_PNG, pb.IMAGE_FORMAT_RAW]


class Runner(EngineRunner):
    """Records what is announced and the stages of the CPU work, in order."""

    def __init__(self, bundle: Bundle, engine: Engine, max_samples: int = 90) -> None:
        super().__init__(bundle, engine, Limits(max_images=9, max_samples=max_samples, max_batch_size=32))
        self.events: list[int | str] = []

    def expect(self, images: int) -> None:
        self.events.append(images)

    async def compute(self, work: Work[T]) -> T:
        self.events.append(work.stage)
        return await super().compute(work)


@pytest.fixture
def runner(bundle: Bundle, engine: Engine) -> Runner:
    return Runner(bundle, engine)


def tensor(images: UInt8Array) -> pb.Images:
    return messages.images_message(images)


def test_the_default_seed_of_a_score_is_0(runner: Runner, digits: UInt8Array) -> None:
    response = run_now(glow_service.score(runner, pb.ScoreRequest(images=tensor(digits[:3]))))
    explicit = run_now(glow_service.score(runner, pb.ScoreRequest(images=tensor(digits[:3]), seed=0)))
    assert response == explicit
    assert (response.seed, response.model.name, response.model.version) == (0, "digits", 1)
    other = run_now(glow_service.score(runner, pb.ScoreRequest(images=tensor(digits[:3]), seed=1)))
    assert other.scores[0].log_likelihood != response.scores[0].log_likelihood


def test_samples_are_answered_in_parts_of_a_batch(runner: Runner, engine: Engine) -> None:
    request = pb.SampleRequest(n=70, seed=3, temperature=0.5, format=pb.IMAGE_FORMAT_RAW)
    call = SampleCall(runner, request)
    assert list(call.parts()) == [range(32), range(32, 64), range(64, 70)]
    responses = []
    for part in call.parts():
        answered = run_now(call.answer(runner, part))
        call.sent(answered)
        responses += answered
    assert [(each.first_index, each.seed) for each in responses] == [(0, 3), (32, 3), (64, 3)]
    expected = engine.reverse(latents(3, 32, 32, 64, 0.5)).image
    np.testing.assert_array_equal(messages.images_array(responses[1].images), expected)


@pytest.mark.parametrize("form", FORMATS)
def test_a_message_of_samples_has_no_gap_and_the_first_of_a_part_lists_those_without_an_image(
    explosive_repository: Path, explosive_engine: Engine, form: pb.ImageFormat
) -> None:
    runner = Runner(newest_bundle(explosive_repository / "digits"), explosive_engine)
    call = SampleCall(runner, pb.SampleRequest(n=64, seed=3, format=form))
    responses = run_now(call.answer(runner, range(32, 64)))
    expected = attempts(explosive_engine, 3, 32, first=32)
    assert 0 < len(expected.not_finite) < 32
    samples = messages.samples_of(responses)
    assert samples.indices.tolist() == [32 + index for index in expected.indices]
    np.testing.assert_array_equal(samples.images, expected.drawn)
    assert [list(each.not_finite) for each in responses] == [
        [32 + index for index in expected.not_finite],
        *([[]] * (len(responses) - 1)),
    ]
    call.sent(responses)


def test_a_call_without_one_finite_sample_ends_with_an_error(runner: Runner) -> None:
    request = pb.SampleRequest(n=40, seed=3, temperature=3e38, format=pb.IMAGE_FORMAT_RAW)
    call = SampleCall(runner, request)
    (one,), (other,) = (run_now(call.answer(runner, part)) for part in call.parts())
    call.sent([one])
    assert (one.first_index, other.first_index) == (0, 32)
    assert [*one.not_finite, *other.not_finite] == list(range(40))
    assert messages.images_array(one.images).shape == (0, 8, 8, 1)
    with pytest.raises(
        NotFiniteError, match=r"temperature is 3e\+38: not one sample of 40 is finite; lower the"
    ):
        call.sent([other])


def test_a_call_gives_up_when_not_one_of_its_first_samples_is_finite(bundle: Bundle, engine: Engine) -> None:
    runner = Runner(bundle, engine, max_samples=100_000)
    call = SampleCall(runner, pb.SampleRequest(n=100_000, seed=3, temperature=3e38))
    parts = call.parts()
    for _ in range(7):
        call.sent(run_now(call.answer(runner, next(parts))))
    with pytest.raises(NotFiniteError, match="not one of the first 256 samples is finite; lower the"):
        call.sent(run_now(call.answer(runner, next(parts))))


def test_the_temperature_of_samples_is_1_and_their_seed_random_by_default(runner: Runner) -> None:
    part = range(1)
    # A sample at temperature 1 may not be finite, so the seeds are compared at temperature 0.
    seeds = {
        run_now(SampleCall(runner, pb.SampleRequest(n=1, temperature=0)).answer(runner, part))[0].seed
        for _ in range(4)
    }
    assert len(seeds) == 4
    default, explicit = (
        SampleCall(runner, pb.SampleRequest(n=1, seed=1, **temperature))
        for temperature in ({}, {"temperature": 1.0})
    )
    assert vars(default) == vars(explicit)


@pytest.mark.parametrize("form", FORMATS)
def test_images_are_returned_in_the_format_of_the_request(
    runner: Runner, digits: UInt8Array, form: pb.ImageFormat
) -> None:
    encoded = run_now(glow_service.encode(runner, pb.EncodeRequest(images=tensor(digits[:2]))))
    sample = SampleCall(runner, pb.SampleRequest(n=2, temperature=0, format=form))
    responses = [
        *run_now(sample.answer(runner, range(2))),
        run_now(glow_service.decode(runner, pb.DecodeRequest(latents=encoded.latents, format=form))),
        run_now(
            glow_service.interpolate(
                runner, pb.InterpolateRequest(images=tensor(digits[:2]), steps=2, format=form)
            )
        ),
    ]
    for response in responses:
        source = response.images.WhichOneof("source")
        assert source == ("tensor" if form == pb.IMAGE_FORMAT_RAW else "encoded")
        assert messages.images_array(response.images).shape == (2, 8, 8, 1)


def test_an_encoding_has_latents_and_mismatched_values(runner: Runner, digits: UInt8Array) -> None:
    response = run_now(glow_service.encode(runner, pb.EncodeRequest(images=tensor(digits[:3]))))
    encodings = messages.encodings_of([response])
    assert (encodings.latents.shape, len(encodings.mismatched_values)) == ((3, 64), 3)
    assert (encodings.model, encodings.version) == ("digits", 1)


def test_the_images_of_a_valid_request_are_announced_before_its_work(
    runner: Runner, digits: UInt8Array
) -> None:
    images, latent = tensor(digits[:2]), messages.float_tensor(latents(0, 0, 3, 64, 0.5))
    png = pb.IMAGE_FORMAT_PNG
    run_now(glow_service.score(runner, pb.ScoreRequest(images=images)))
    run_now(glow_service.encode(runner, pb.EncodeRequest(images=images)))
    run_now(glow_service.decode(runner, pb.DecodeRequest(latents=latent, format=png)))
    run_now(glow_service.interpolate(runner, pb.InterpolateRequest(images=images, steps=4, format=png)))
    assert runner.events == [
        *(2, PREPARATION),
        *(2, PREPARATION),
        *(3, SERIALIZATION),
        *(2 + 4, PREPARATION, SERIALIZATION),
    ]


def refused(runner: Runner, digits: UInt8Array) -> list[tuple[Coroutine[Any, Any, Any], str]]:
    """Calls with a malformed request, and the words of their errors."""
    latent = messages.float_tensor(latents(0, 0, 10, 64))
    return [
        (glow_service.score(runner, pb.ScoreRequest()), "images is empty"),
        (glow_service.score(runner, pb.ScoreRequest(images=tensor(digits[:10]))), "takes 1 to 9"),
        (glow_service.encode(runner, pb.EncodeRequest(images=tensor(digits[:10]))), "takes 1 to 9"),
        (glow_service.decode(runner, pb.DecodeRequest(latents=latent)), "takes 1 to 9"),
        (
            glow_service.interpolate(runner, pb.InterpolateRequest(images=tensor(digits[:2]), steps=10)),
            "steps is 10; it must lie in 2 to 9",
        ),
        (
            glow_service.interpolate(runner, pb.InterpolateRequest(images=tensor(digits[:3]), steps=2)),
            "3 images; it takes two",
        ),
        (glow_service.interpolate(runner, pb.InterpolateRequest(steps=2)), "images is empty"),
    ]


def test_a_malformed_request_is_refused_before_its_work(runner: Runner, digits: UInt8Array) -> None:
    for call, words in refused(runner, digits):
        with pytest.raises(InvalidRequestError, match=words):
            run_now(call)
    assert runner.events == []


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"n": 0}, "n is 0; it must lie in 1 to 90"),
        ({"n": 91}, "n is 91; it must lie in 1 to 90"),
        ({"n": 1, "temperature": -1}, "temperature is -1.0"),
        ({"n": 1, "format": 7}, "format is 7; it must be one of IMAGE_FORMAT_UNSPECIFIED"),
    ],
)
def test_a_malformed_sample_request_is_refused(runner: Runner, fields: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidRequestError, match=words):
        SampleCall(runner, pb.SampleRequest(**fields))


def test_a_model_has_its_manifest_and_the_providers_of_its_graphs(bundle: Bundle, engine: Engine) -> None:
    response = glow_service.get_model(bundle.manifest, engine.placements)
    assert response.manifest == bundle.manifest
    assert [(each.graph, each.provider) for each in response.graphs] == [
        ("forward.onnx", "CPUExecutionProvider"),
        ("reverse.onnx", "CPUExecutionProvider"),
    ]
    assert all(each.nodes > 10 for each in response.graphs)
