"""The requests that the clients make from the arguments of their calls."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from glowserve import messages
from glowserve.client import requests
from glowserve.client.errors import RequestError
from glowserve.images import encode_png
from glowserve.v1 import glow_service_pb2 as pb

IMAGES = np.arange(2 * 2 * 3, dtype=np.uint8).reshape(2, 2, 3, 1)


def test_a_score_request_has_model_version_seed_and_images() -> None:
    request = requests.ScoreArguments(model="digits", version=3, seed=7).request(IMAGES)
    assert (request.model.name, request.model.version, request.seed) == ("digits", 3, 7)
    np.testing.assert_array_equal(messages.images_array(request.images), IMAGES)


def test_a_seed_that_is_left_out_is_not_sent() -> None:
    assert not requests.ScoreArguments().request(IMAGES).HasField("seed")
    assert not requests.sample_request(1, 1.0, None, "", "", 0).HasField("seed")
    assert requests.ScoreArguments(seed=0).request(IMAGES).HasField("seed")


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_out_of_range_is_refused(seed: int) -> None:
    for make in (
        lambda: requests.ScoreArguments(seed=seed).request(IMAGES),
        lambda: requests.sample_request(1, 1.0, seed, "", "", 0),
    ):
        with pytest.raises(ValueError, match=f"seed is {seed}; it must lie in 0 to 2"):
            make()


def test_a_sample_request_asks_for_tensors() -> None:
    request = requests.sample_request(5, 0.5, 2**64 - 1, "seven", "digits", 3)
    assert (request.n, request.temperature, request.seed) == (5, 0.5, 2**64 - 1)
    assert (request.model.name, request.model.version) == ("digits", 3)
    assert (request.class_name, request.format) == ("seven", pb.IMAGE_FORMAT_RAW)


def test_an_encode_request_has_model_version_and_images() -> None:
    request = requests.encode_request([b"one", b"other"], "digits", 3)
    assert (request.model.name, request.model.version) == ("digits", 3)
    assert list(request.images.encoded.data) == [b"one", b"other"]


def test_a_decode_request_has_model_version_and_latents() -> None:
    latents = np.arange(6, dtype=np.float32).reshape(2, 3)
    request = requests.decode_request(latents, "digits", 3)
    assert (request.model.name, request.model.version) == ("digits", 3)
    assert (list(request.latents.shape), request.format) == ([2, 3], pb.IMAGE_FORMAT_RAW)
    np.testing.assert_array_equal(np.frombuffer(request.latents.data, "<f4"), latents.ravel())


def test_an_interpolate_request_has_both_images_in_order() -> None:
    request = requests.interpolate_request(IMAGES[0], encode_png(IMAGES[1]), 9, "digits", 3)
    assert (request.model.name, request.model.version, request.steps) == ("digits", 3, 9)
    np.testing.assert_array_equal(messages.images_array(request.images), IMAGES)
    assert request.format == pb.IMAGE_FORMAT_RAW


def test_a_model_request_has_model_and_version() -> None:
    request = requests.model_request("digits", 3)
    assert (request.model.name, request.model.version) == ("digits", 3)


@pytest.mark.parametrize(
    "asked", [{"scores": ["anomaly_p_value"]}, {"false_alarm_rate": 0.1}, {"importance_samples": 2}]
)
def test_a_service_that_is_older_than_a_score_is_told_from_one_that_has_it(asked: dict[str, Any]) -> None:
    arguments = requests.ScoreArguments(**asked)
    row = pb.ImageScore(log_likelihood=-1, bits_per_dim=1, percentile=0, finite=True)
    with pytest.raises(RequestError, match="UNIMPLEMENTED: the service is older than the score '"):
        arguments.received([pb.ScoreResponse(scores=[row])])
    row = pb.ImageScore(finite=True, anomaly_p_value=1, anomalous=False, standard_error=1)
    assert len(arguments.received([pb.ScoreResponse(scores=[row])])) == 1
