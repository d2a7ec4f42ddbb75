"""Numbers that leave the range of float32: what the caller learns, what is counted, and that no other image changes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import grpc
import numpy as np
import pytest

import glowserve
from glowserve.images import UInt8Array
from glowserve.runtime.engine import Engine
from glowserve.runtime.randomness import latents
from glowserve.v1 import glow_service_pb2 as pb
from glowserve.v1.glow_service_pb2_grpc import GlowServiceStub
from tests.servers import RunServer
from tests.service.bundles import BoolArray, explode, scale
from tests.service.metrics import value
from tests.service.stubs import connect
from tests.service.wire import (
    COOL,
    latent_tensor,
    raw,
    refusal,
)


@pytest.fixture
def no_canary(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets bundles be served whose canary fails. They do on digits what other models do far from their data."""
    for module in ("glowserve_service.models.loading", "glowserve.client.transports.embedded"):
        monkeypatch.setattr(f"{module}.check_canary", lambda _engine, _bundle: None)


Explosive = Callable[[str], tuple[Path, BoolArray]]


@pytest.fixture(scope="module")
def explosive(repository: Path, tmp_path_factory: pytest.TempPathFactory, digits: UInt8Array) -> Explosive:
    """Makes a repository whose model leaves float32 for some of the digits; with whether each digit stays inside.

    The argument is the output of the forward graph that leaves it: "log_likelihood", or "latent" as well.
    """

    def make(what: str) -> tuple[Path, BoolArray]:
        noise = np.full(digits.shape, 0.5, np.float32)
        path = tmp_path_factory.mktemp("explosive")

        def finite(engine: Engine) -> BoolArray:
            results = getattr(engine.forward(digits, noise), what)
            found: BoolArray = np.isfinite(results).reshape(len(digits), -1).all(axis=1)
            return found

        source, target = repository / "digits" / "1", path / "digits" / "1"
        return path, explode(source, target, ("forward.onnx",), finite, least=0.12, most=0.88)

    return make


@pytest.mark.usefixtures("no_canary")
def test_a_score_beyond_float32_is_minus_infinity_and_other_images_of_the_batch_are_unharmed(
    run_server: RunServer, explosive: Explosive, digits: UInt8Array
) -> None:
    path, _ = explosive("log_likelihood")
    with run_server(repository=path) as server, connect(server) as stubs:
        stub = stubs.glow
        together = stub.Score(pb.ScoreRequest(images=raw(digits))).scores
        assert 10 < sum(score.finite for score in together) < len(digits) - 10
        for image, score in zip(digits, together, strict=True):
            assert np.isfinite(score.log_likelihood) == score.finite
            if not score.finite:
                assert (score.log_likelihood, score.bits_per_dim, score.percentile) == (-np.inf, np.inf, 0)
            (alone,) = stub.Score(pb.ScoreRequest(images=raw(image[None]))).scores
            assert alone.finite == score.finite
            assert alone.log_likelihood == pytest.approx(score.log_likelihood, rel=1e-5)
        counted = value(server, "not_finite_images_total", model="digits", method="Score")
        assert counted == 2 * sum(not score.finite for score in together)
    opened = glowserve.open(path / "digits").score(digits)
    np.testing.assert_allclose(opened.log_likelihood, [score.log_likelihood for score in together], rtol=1e-5)
    assert opened.finite.tolist() == [score.finite for score in together]


@pytest.mark.usefixtures("no_canary")
def test_an_encoding_beyond_float32_is_refused_and_the_image_is_named(
    run_server: RunServer, explosive: Explosive, digits: UInt8Array
) -> None:
    path, encodable = explosive("latent")
    good, bad = digits[encodable][:3], digits[~encodable][:2]
    mixed = np.concatenate([good, bad, good])
    with run_server(repository=path) as server, connect(server) as stubs:
        stub = stubs.glow
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


def test_a_decoding_beyond_float32_is_refused_and_the_row_is_named(
    stub: GlowServiceStub, embedded: glowserve.Client
) -> None:
    rows = latents(0, 0, 6, 64, COOL)
    for row, latent in ((4, 1e38), (2, -3e38)):
        rows[row] = latent
        code, message = refusal(lambda: stub.Decode(pb.DecodeRequest(latents=latent_tensor(rows))))
        assert code is grpc.StatusCode.FAILED_PRECONDITION
        assert message == f"latents: row {row} does not decode to a finite image"
        with pytest.raises(glowserve.RequestError) as caught:
            embedded.decode(rows)
        assert (caught.value.code, caught.value.message) == (code, message)


@pytest.mark.usefixtures("no_canary")
def test_every_value_of_an_encoding_that_does_not_decode_is_mismatched(
    run_server: RunServer,
    repository: Path,
    tmp_path_factory: pytest.TempPathFactory,
    digits: UInt8Array,
) -> None:
    """Also of black and white images: the byte that a graph makes of NaN could be either."""
    path = tmp_path_factory.mktemp("one_way")
    source, target = repository / "digits" / "1", path / "digits" / "1"
    shutil.copytree(source, target)
    scale(target, "reverse.onnx", "level1.step1.weight", 3e38)
    images = np.concatenate([digits[:2], np.zeros_like(digits[:1]), np.full_like(digits[:1], 255)])
    with run_server(repository=path) as server, connect(server) as stubs:
        response = stubs.glow.Encode(pb.EncodeRequest(images=raw(images)))
        assert list(response.mismatched_values) == 4 * [64]
        assert value(server, "inexact_encodings_total", model="digits") == 4
    encodings = glowserve.open(path / "digits").encode(images)
    assert encodings.mismatched_values.tolist() == 4 * [64]
