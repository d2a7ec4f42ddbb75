"""Scores that a caller names, through a bundle in this process and through a service: the same numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from glowserve_service.server import Server

import glowserve
from glowserve.images import UInt8Array
from glowserve.messages import images_message
from glowserve.runtime.calibration import bundle_calibration
from glowserve.runtime.engine import Engine
from glowserve.runtime.randomness import dequantization_noise
from glowserve.runtime.repository import Bundle
from glowserve.scores import TABLE
from glowserve.v1 import glow_service_pb2 as pb
from glowserve.v1 import glow_service_pb2_grpc
from tests.servers import RunServer
from tests.service.bundles import without_calibration

ALL = [name for name in TABLE if name not in ("log_posterior", "standard_error")]


@pytest.fixture(params=["embedded", "client"])
def caller(request: pytest.FixtureRequest) -> glowserve.Client:
    found: glowserve.Client = request.getfixturevalue(request.param)
    return found


def test_an_answer_has_what_was_named_and_no_more(caller: glowserve.Client, digits: UInt8Array) -> None:
    default = ["log_likelihood", "bits_per_dim", "percentile", "finite"]
    assert list(caller.score(digits[:3]).columns()) == default
    named = caller.score(digits[:3], scores=["anomaly_p_value", "log_det"])
    assert list(named.columns()) == [*default, "anomaly_p_value", "log_det"]
    assert named.false_alarm_rate is None


def test_the_numbers_of_a_service_and_of_this_process_are_the_same(
    client: glowserve.Client, embedded: glowserve.Client, digits: UInt8Array
) -> None:
    here, there = (each.score(digits[:20], scores=ALL).columns() for each in (embedded, client))
    assert list(here) == list(there) == ALL
    for name in ALL:
        np.testing.assert_allclose(here[name], there[name], rtol=1e-4)


def test_the_levels_and_the_constant_add_up_to_the_log_likelihood(
    caller: glowserve.Client, bundle: Bundle, digits: UInt8Array
) -> None:
    scores = caller.score(digits[:5], scores=["log_prior", "log_det"], seed=3)
    assert scores.log_prior is not None
    assert scores.log_det is not None
    assert scores.log_prior.shape == scores.log_det.shape == (5, bundle.manifest.flow.levels)
    total = scores.log_prior.sum(axis=1) + scores.log_det.sum(axis=1) + bundle.manifest.log_det_constant
    np.testing.assert_allclose(total, scores.log_likelihood, rtol=1e-5)


def test_p_values_have_the_default_seed_whatever_seed_a_request_has(
    caller: glowserve.Client, digits: UInt8Array
) -> None:
    names = ["anomaly_p_value", "typicality_p_value"]
    usual, other = (caller.score(digits[:20], scores=names, seed=seed) for seed in (0, 12345))
    for name in names:
        np.testing.assert_array_equal(getattr(usual, name), getattr(other, name))
    assert (usual.log_likelihood != other.log_likelihood).all()


def test_p_values_of_good_images_are_about_uniform_and_of_noise_the_smallest(
    embedded: glowserve.Client, digits: UInt8Array, rng: np.random.Generator
) -> None:
    p = embedded.score(digits, scores=["anomaly_p_value"]).anomaly_p_value
    assert p is not None
    assert p.mean() == pytest.approx(0.5, abs=0.12)  # 179 images, and 90 of the calibration
    assert (p <= 0.1).mean() <= 0.1 + 4 * np.sqrt(0.09 * (1 / 179 + 1 / 92))
    noise = rng.integers(0, 256, digits.shape, dtype=np.uint8)
    p = embedded.score(noise, scores=["anomaly_p_value"]).anomaly_p_value
    assert p is not None
    assert np.median(p) == 1 / 91


def test_a_blank_image_is_anomalous_although_its_percentile_is_not_low(embedded: glowserve.Client) -> None:
    scores = embedded.score(np.zeros((1, 8, 8, 1), np.uint8), scores=["anomalous", "anomaly_p_value"])
    assert scores.anomalous is not None
    assert scores.anomalous.tolist() == [True]


def test_anomalous_compares_with_the_rate_and_the_answer_says_which(
    caller: glowserve.Client, digits: UInt8Array
) -> None:
    scores = caller.score(digits[:50], scores=["anomaly_p_value"], false_alarm_rate=0.3)
    assert scores.anomaly_p_value is not None
    np.testing.assert_array_equal(scores.anomalous, scores.anomaly_p_value <= 0.3)
    assert scores.false_alarm_rate == 0.3
    assert caller.score(digits[:1], scores=["anomalous"]).false_alarm_rate == 1 / 91  # coarser than 1 %


def test_several_draws_estimate_the_likelihood_and_nothing_else(
    caller: glowserve.Client, engine: Engine, digits: UInt8Array
) -> None:
    images, m = digits[:3], 40  # more than fit in one batch
    one = caller.score(images, scores=["anomaly_p_value"], seed=7)
    scores = caller.score(images, scores=["anomaly_p_value"], seed=7, importance_samples=m)
    draws = [engine.forward(images, dequantization_noise(7, images, draw=i)).log_likelihood for i in range(m)]
    nats = np.stack(draws).astype(np.float64)
    expected = np.log(np.exp(nats - nats.max(axis=0)).mean(axis=0)) + nats.max(axis=0)
    np.testing.assert_allclose(scores.log_likelihood, expected, rtol=1e-5)
    assert (scores.log_likelihood > nats.mean(axis=0)).all()  # Jensen
    assert scores.standard_error is not None
    assert (scores.standard_error > 0).all()
    np.testing.assert_array_equal(scores.anomaly_p_value, one.anomaly_p_value)
    np.testing.assert_allclose(scores.percentile, one.percentile, atol=100 / 90)


def test_zero_is_a_value_on_the_wire(server: Server, embedded: glowserve.Client) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (1, 8, 8, 1), dtype=np.uint8)
    assert embedded.score(noise).percentile.tolist() == [0]
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        stub = glow_service_pb2_grpc.GlowServiceStub(channel)
        request = pb.ScoreRequest(images=images_message(noise), scores=["anomaly_p_value"])
        (row,) = stub.Score(request).scores
    assert row.HasField("percentile")
    assert row.percentile == 0
    assert row.HasField("anomaly_p_value")
    for name in ("anomalous", "typicality_p_value", "complexity_bits_per_dim", "standard_error"):
        assert not row.HasField(name)


def test_a_stream_has_the_scores_of_single_calls(client: glowserve.Client, digits: UInt8Array) -> None:
    names = ["anomaly_p_value", "complexity_bits_per_dim"]
    streamed = list(client.iter_scores(iter(digits[:70]), scores=iter(names)))
    whole = client.score(digits[:70], scores=names)
    for name in names:
        joined = np.concatenate([getattr(each, name) for each in streamed])
        np.testing.assert_allclose(joined, getattr(whole, name))


async def test_the_client_of_event_loops_asks_for_the_same(server: Server, digits: UInt8Array) -> None:
    async with glowserve.AsyncClient(f"127.0.0.1:{server.port}") as client:
        scores = await client.score(digits[:2], scores=["complexity_bits_per_dim"], importance_samples=2)
    assert scores.complexity_bits_per_dim is not None
    assert scores.standard_error is not None


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"scores": "anomalous"}, "pass a list of names"),
        ({"scores": [3]}, "pass names"),
        ({"false_alarm_rate": "low"}, "pass a number"),
        ({"importance_samples": 2.5}, "pass an integer"),
    ],
)
def test_arguments_of_a_wrong_type_are_named(embedded: Any, arguments: dict[str, Any], error: str) -> None:
    with pytest.raises(TypeError, match=error):
        embedded.score(np.zeros((8, 8), np.uint8), **arguments)


def test_a_service_without_a_calibration_refuses_with_the_command(
    bundle: Bundle, digits: UInt8Array, run_server: RunServer, tmp_path: Path
) -> None:
    without_calibration(bundle.path, tmp_path / "digits" / "1")
    with (
        run_server(repository=tmp_path) as server,
        glowserve.Client(f"127.0.0.1:{server.port}") as client,
    ):
        assert len(client.score(digits[:2])) == 2
        with pytest.raises(glowserve.RequestError, match="glowserve calibrate REPOSITORY/digits") as caught:
            client.score(digits[:2], scores=["anomaly_p_value"])
    assert (caught.value.code, caught.value.reason) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "NOT_CALIBRATED",
    )


def test_the_manifest_stays_small(client: glowserve.Client, bundle: Bundle) -> None:
    calibration = bundle_calibration(bundle)
    assert calibration is not None
    images = len(calibration.images)
    assert client.manifest().ByteSize() < 8 * images + 20_000
    assert len(client.manifest().calibration.bits_per_dim) == images
