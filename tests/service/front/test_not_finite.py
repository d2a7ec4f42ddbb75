"""Numbers that leave the range of float32: who is told, and that nobody else suffers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import numpy_helper

import glowserve
from glowserve.images import UInt8Array
from glowserve.runtime.config import RuntimeConfig
from glowserve.runtime.engine import Engine
from glowserve.runtime.randomness import latents
from glowserve.runtime.repository import Bundle, open_bundle
from glowserve.v1 import glow_service_pb2 as pb
from glowserve.v1.glow_service_pb2_grpc import GlowServiceStub
from tests.service.wire import (
    COOL,
    copied,
    draw,
    images_of,
    latent_tensor,
    raw,
    refusal,
)

RunServer = Callable[..., Any]

Float32Array = npt.NDArray[np.float32]


def with_larger_weight(source: Path, target: Path, graph: str, weight: str, factor: float) -> Bundle:
    """A copy of a bundle in which one weight of one graph is much too large."""
    model = onnx.load(source / graph)
    (initializer,) = [entry for entry in model.graph.initializer if entry.name == weight]
    scaled = numpy_helper.to_array(initializer) * np.float32(factor)
    initializer.CopyFrom(numpy_helper.from_array(scaled, weight))
    data = model.SerializeToString()
    manifest = json.loads((source / "manifest.json").read_text())
    for entry in manifest["files"]:
        if entry["name"] == graph:
            entry |= {"sha256": hashlib.sha256(data).hexdigest(), "size": str(len(data))}
    copied(source, target, files=manifest["files"])
    (target / graph).write_bytes(data)
    return open_bundle(target)


@pytest.fixture
def no_canary(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets a broken bundle be served: what a sound one may do far from its data, these do on digits."""
    for module in ("models", "embedded"):
        monkeypatch.setattr(f"service.{module}.check_canary", lambda _engine, _bundle: None)


Explosive = Callable[[str], tuple[Path, npt.NDArray[np.bool_]]]


@pytest.fixture(scope="module")
def explosive(repository: Path, tmp_path_factory: pytest.TempPathFactory, digits: UInt8Array) -> Explosive:
    """Makes a repository of a model that drives some of the digits out of float32, and says which stay.

    What is to leave float32 is "log_likelihood", or "latent" as well.
    """

    def make(what: str) -> tuple[Path, npt.NDArray[np.bool_]]:
        noise = np.full(digits.shape, 0.5, np.float32)
        for factor in np.geomspace(4, 1000, 100):
            path = tmp_path_factory.mktemp("explosive")
            source, target = repository / "digits" / "1", path / "digits" / "1"
            bundle = with_larger_weight(source, target, "forward.onnx", "level1.step1.mix.weight", factor)
            result = getattr(
                Engine(bundle, RuntimeConfig(device="cpu", threads=1)).forward(digits, noise), what
            )
            stays = np.isfinite(result).reshape(len(digits), -1).all(axis=1)
            if 20 < stays.sum() < len(digits) - 20:
                return path, stays
        raise AssertionError("no factor makes some images, but not all, leave float32")

    return make


@pytest.mark.usefixtures("no_canary")
def test_an_image_beyond_float32_is_an_answer_and_leaves_its_batch_mates_alone(
    run_server: Callable[..., Any], explosive: Explosive, digits: UInt8Array
) -> None:
    path, _ = explosive("log_likelihood")
    with run_server(repository=path) as server, grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        stub = GlowServiceStub(channel)
        together = stub.Score(pb.ScoreRequest(images=raw(digits))).scores
        assert 10 < sum(score.finite for score in together) < len(digits) - 10
        for image, score in zip(digits, together, strict=True):
            assert np.isfinite(score.log_likelihood) == score.finite
            if not score.finite:
                assert (score.log_likelihood, score.bits_per_dim, score.percentile) == (-np.inf, np.inf, 0)
            (alone,) = stub.Score(pb.ScoreRequest(images=raw(image[None]))).scores
            assert alone.finite == score.finite
            assert alone.log_likelihood == pytest.approx(score.log_likelihood, rel=1e-5)
        counted = server.metrics.registry.get_sample_value(
            "glowserve_not_finite_images_total", {"model": "digits", "method": "Score"}
        )
        assert counted == 2 * sum(not score.finite for score in together)
    opened = glowserve.open(path / "digits").score(digits)
    np.testing.assert_allclose(opened.log_likelihood, [score.log_likelihood for score in together], rtol=1e-5)
    assert opened.finite.tolist() == [score.finite for score in together]


@pytest.mark.usefixtures("no_canary")
def test_a_latent_beyond_float32_is_refused_and_the_image_named(
    run_server: Callable[..., Any], explosive: Explosive, digits: UInt8Array
) -> None:
    path, encodable = explosive("latent")
    good, bad = digits[encodable][:3], digits[~encodable][:2]
    mixed = np.concatenate([good, bad, good])
    with run_server(repository=path) as server, grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        stub = GlowServiceStub(channel)
        code, message = refusal(lambda: stub.Encode(pb.EncodeRequest(images=raw(mixed))))
        assert code is grpc.StatusCode.FAILED_PRECONDITION
        assert message.startswith("images: image 3 ")
        assert len(stub.Encode(pb.EncodeRequest(images=raw(good))).mismatched_values) == 3
        ends = np.stack([good[0], bad[0]])
        between = refusal(lambda: stub.Interpolate(pb.InterpolateRequest(images=raw(ends), steps=3)))
        assert between == (code, message.replace("image 3", "image 1"))
    model = glowserve.open(path / "digits")
    with pytest.raises(glowserve.RequestError, match="images: image 1 lies so far"):
        model.interpolate(*ends)
    with pytest.raises(glowserve.RequestError) as caught:
        model.encode(mixed)
    assert (caught.value.code, caught.value.message) == (code, message)
    assert len(model.encode(good)) == 3


def test_latents_that_decode_beyond_float32_are_refused_and_the_row_named(
    stub: GlowServiceStub, embedded: Any
) -> None:
    rows = latents(0, 0, 6, 64, COOL)
    for row, value in ((4, 1e38), (2, -3e38)):
        rows[row] = value
        code, message = refusal(lambda: stub.Decode(pb.DecodeRequest(latents=latent_tensor(rows))))
        assert code is grpc.StatusCode.FAILED_PRECONDITION
        assert message == f"latents: row {row} does not decode to a finite image"
        with pytest.raises(glowserve.RequestError) as caught:
            embedded.decode(rows)
        assert (caught.value.code, caught.value.message) == (code, message)


def test_a_sample_beyond_float32_ends_the_stream_and_is_named(
    stub: GlowServiceStub, embedded: Any, engine: Engine
) -> None:
    """Seed and temperature are chosen such that the first bad sample lies in a later message."""
    for seed in range(20):
        rows, first = latents(seed, 0, 200, 64), 200
        for temperature in np.geomspace(1, 1000, 100, dtype=np.float32):
            finite = np.isfinite(engine.reverse(rows * temperature).pixels).reshape(200, -1).all(axis=1)
            if not finite.all():
                first = int(np.argmin(finite))
                break
        if 32 <= first < 200:
            break
    assert 32 <= first < 200
    request = pb.SampleRequest(n=200, seed=seed, temperature=temperature, format=pb.IMAGE_FORMAT_RAW)
    received = []
    with pytest.raises(grpc.RpcError) as caught:
        received.extend(stub.Sample(request))
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert caught.value.details() == f"temperature: sample {first} does not decode to a finite image"
    images = np.concatenate([images_of(response.images) for response in received])
    assert len(images) == first // 32 * 32
    np.testing.assert_array_equal(images, engine.reverse(rows[: len(images)] * temperature).image)
    with pytest.raises(glowserve.RequestError, match=f"FAILED_PRECONDITION: temperature: sample {first} "):
        embedded.sample(200, seed=seed, temperature=float(temperature))


@pytest.mark.parametrize("temperature", [1e10, 3e38])
def test_a_temperature_that_nothing_survives_is_refused(stub: GlowServiceStub, temperature: float) -> None:
    code, message = refusal(lambda: draw(stub, n=2, seed=0, temperature=temperature))
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert message.startswith("temperature: sample 0 ")


@pytest.mark.usefixtures("no_canary")
def test_an_encoding_that_does_not_decode_counts_every_value_as_lost(
    run_server: Callable[..., Any],
    repository: Path,
    tmp_path_factory: pytest.TempPathFactory,
    digits: UInt8Array,
) -> None:
    """Black and white among them: the bytes that a graph makes of NaN could pass for either."""
    path = tmp_path_factory.mktemp("one_way")
    source, target = repository / "digits" / "1", path / "digits" / "1"
    with_larger_weight(source, target, "reverse.onnx", "level1.step1.weight", 3e38)
    images = np.concatenate([digits[:2], np.zeros_like(digits[:1]), np.full_like(digits[:1], 255)])
    with run_server(repository=path) as server, grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        response = GlowServiceStub(channel).Encode(pb.EncodeRequest(images=raw(images)))
        assert list(response.mismatched_values) == 4 * [64]
        counted = server.metrics.registry.get_sample_value(
            "glowserve_inexact_encodings_total", {"model": "digits"}
        )
        assert counted == 4
    encodings = glowserve.open(path / "digits").encode(images)
    assert encodings.mismatched_values.tolist() == 4 * [64]
