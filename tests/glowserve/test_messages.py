"""Arrays and results to messages, and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from glowserve import messages
from glowserve.images import encode_png
from glowserve.results import ModelInfo
from glowserve.scores import COLUMNS, Scores
from glowserve.v1 import glow_service_pb2 as pb
from glowserve.v1 import manifest_pb2, tensor_pb2


@pytest.mark.parametrize("channels", [1, 3])
def test_images_survive_a_message_as_a_tensor_or_as_files(rng: np.random.Generator, channels: int) -> None:
    images = rng.integers(0, 256, (3, 5, 4, channels), dtype=np.uint8)
    for portion in (images, [encode_png(image) for image in images]):
        sent = pb.Images.FromString(messages.images_message(portion).SerializeToString())
        np.testing.assert_array_equal(messages.images_array(sent), images)


def test_a_tensor_of_images_is_row_major(rng: np.random.Generator) -> None:
    images = np.asfortranarray(rng.integers(0, 256, (2, 3, 4, 1), dtype=np.uint8))
    tensor = messages.image_tensor(images)
    assert tensor.dtype == tensor_pb2.DATA_TYPE_UINT8
    assert list(tensor.shape) == [2, 3, 4, 1]
    assert list(tensor.data) == [images[i, y, x, 0] for i in range(2) for y in range(3) for x in range(4)]


def test_a_tensor_of_latents_is_little_endian() -> None:
    tensor = messages.float_tensor(np.array([[1.0, -2.0]], ">f4"))
    assert tensor.dtype == tensor_pb2.DATA_TYPE_FLOAT32
    assert list(tensor.shape) == [1, 2]
    assert tensor.data == bytes.fromhex("0000803f000000c0")


def scores(rows: slice) -> Scores:
    """Some of five rows of scores. Every column of numbers has values of its own."""
    columns: dict[str, Any] = {}
    for i, (name, dtype) in enumerate(COLUMNS.items()):
        numbers = 100.5 * i + np.arange(5)
        columns[name] = (numbers if dtype is np.float64 else numbers % 2 == 0)[rows]
    return Scores(**columns, model="digits", version=7, seed=2**64 - 1)


def test_every_column_of_the_scores_of_several_messages_is_joined_in_order() -> None:
    sent = [messages.scores_message(scores(rows)) for rows in (slice(0, 2), slice(2, 5))]
    received = messages.scores_of([pb.ScoreResponse.FromString(each.SerializeToString()) for each in sent])
    expected = scores(slice(5))
    for name, dtype in COLUMNS.items():
        np.testing.assert_array_equal(getattr(received, name), getattr(expected, name))
        assert getattr(received, name).dtype == dtype
    assert (received.model, received.version, received.seed, len(received)) == ("digits", 7, 2**64 - 1, 5)


def test_a_score_that_an_older_service_left_out_of_some_rows_is_in_none() -> None:
    rows = [pb.ImageScore(anomaly_p_value=0.5, log_prior=[1.0, 2.0]), pb.ImageScore()]
    received = messages.scores_of([pb.ScoreResponse(scores=[row]) for row in rows])
    assert received.anomaly_p_value is received.log_prior is None
    assert messages.scores_of([pb.ScoreResponse(scores=rows[:1] * 2)]).log_prior is not None


def test_scores_that_are_not_finite_survive_a_message() -> None:
    column = np.array([-np.inf])
    given = Scores(
        log_likelihood=column,
        bits_per_dim=-column,
        percentile=np.zeros(1),
        finite=np.array([False]),
        model="digits",
        version=1,
        seed=0,
    )
    sent = messages.scores_message(given).SerializeToString()
    received = messages.scores_of([pb.ScoreResponse.FromString(sent)])
    assert received.log_likelihood.tolist() == [-np.inf]
    assert received.bits_per_dim.tolist() == [np.inf]
    assert received.finite.tolist() == [False]


def test_samples_of_several_messages_are_joined_in_order() -> None:
    parts = [np.full((n, 2, 2, 1), n, np.uint8) for n in (1, 3)]
    model = pb.ModelVersion(name="digits", version=2)
    sent = [
        pb.SampleResponse(
            model=model, seed=9, first_index=first, images=messages.images_message(part), not_finite=missing
        )
        for part, first, missing in zip(parts, (0, 2), ([1], [5, 6]), strict=True)
    ]
    samples = messages.samples_of(sent)
    np.testing.assert_array_equal(samples.images, np.concatenate(parts))
    assert (samples.model, samples.version, samples.seed, len(samples)) == ("digits", 2, 9, 4)
    assert samples.indices.tolist() == [0, 2, 3, 4]
    assert samples.not_finite.tolist() == [1, 5, 6]
    assert samples.indices.dtype == samples.not_finite.dtype == np.int64


def test_a_message_of_samples_may_have_no_image() -> None:
    nothing = messages.images_message(np.zeros((0, 2, 2, 3), np.uint8))
    sent = pb.SampleResponse(first_index=4, images=nothing, not_finite=[4, 5]).SerializeToString()
    samples = messages.samples_of([pb.SampleResponse.FromString(sent)])
    assert (samples.images.shape, len(samples), len(samples.indices)) == ((0, 2, 2, 3), 0, 0)
    assert samples.not_finite.tolist() == [4, 5]


def test_encodings_of_several_messages_are_joined_in_order() -> None:
    latents = np.arange(6, dtype=np.float32).reshape(3, 2)
    model = pb.ModelVersion(name="digits", version=2)
    sent = [
        pb.EncodeResponse(model=model, latents=messages.float_tensor(part), mismatched_values=mismatched)
        for part, mismatched in ((latents[:2], [0, 1]), (latents[2:], [2]))
    ]
    encodings = messages.encodings_of(sent)
    np.testing.assert_array_equal(encodings.latents, latents)
    assert encodings.mismatched_values.tolist() == [0, 1, 2]
    assert (encodings.model, encodings.version, len(encodings)) == ("digits", 2, 3)


@pytest.mark.parametrize("state", [0, 99], ids=["none", "one of a newer server"])
def test_an_unknown_state_is_unspecified(state: int) -> None:
    assert messages.model_info(pb.ModelSummary(state=state)).state == "UNSPECIFIED"  # type: ignore[arg-type]


def test_a_summary_becomes_a_model_info() -> None:
    summary = pb.ModelSummary(
        model=pb.ModelVersion(name="faces", version=3),
        image=manifest_pb2.ImageSpec(height=32, width=48, channels=3, n_bits=5),
        state=pb.MODEL_STATE_FAILING,
        reason="its canary failed",
    )
    reason = "its canary failed"
    assert messages.model_info(summary) == ModelInfo("faces", 3, 32, 48, 3, 5, "FAILING", reason)
