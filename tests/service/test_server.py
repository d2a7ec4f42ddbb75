"""What the server answers to good calls, over gRPC on loopback, and to images that leave float32's range."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
import onnx
import pytest
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from onnx import numpy_helper
from PIL import Image

import glowserve
from glowserve.images import UInt8Array, decode_png, encode_png, prepare_encoded, to_pil
from glowserve.v1 import glow_service_pb2 as pb
from glowserve.v1 import tensor_pb2
from glowserve.v1.glow_service_pb2_grpc import GlowServiceStub
from service.engine import Engine
from service.errors import BundleError
from service.randomness import dequantization_noise, latents
from service.repository import Bundle, manifest_checksum, open_bundle
from service.server import Server

RunServer = Callable[..., Any]

Float32Array = npt.NDArray[np.float32]


def raw(images: UInt8Array) -> pb.Images:
    tensor = tensor_pb2.Tensor(dtype="DATA_TYPE_UINT8", shape=images.shape, data=images.tobytes())
    return pb.Images(tensor=tensor)


def encoded(*files: bytes) -> pb.Images:
    return pb.Images(encoded=pb.EncodedImages(data=files))


def latent_tensor(rows: Float32Array) -> tensor_pb2.Tensor:
    return tensor_pb2.Tensor(dtype="DATA_TYPE_FLOAT32", shape=rows.shape, data=rows.astype("<f4").tobytes())


def file_of(picture: Image.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return buffer.getvalue()


def nats(response: pb.ScoreResponse) -> list[float]:
    return [score.log_likelihood for score in response.scores]


def images_of(images: pb.Images) -> UInt8Array:
    if images.HasField("encoded"):
        return np.stack([decode_png(data) for data in images.encoded.data])
    assert images.tensor.dtype == tensor_pb2.DATA_TYPE_UINT8
    return np.frombuffer(images.tensor.data, np.uint8).reshape(tuple(images.tensor.shape))


def refusal(call: Callable[[], Any]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value.code(), caught.value.details()


@pytest.fixture
def stub(server: Server) -> Iterator[GlowServiceStub]:
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        yield GlowServiceStub(channel)


@pytest.fixture(scope="module")
def engine(bundle: Bundle) -> Engine:
    return Engine(bundle, device="cpu", threads=1)


# Score


def test_a_score_is_what_the_graph_says_of_the_image_and_the_documented_noise(
    stub: GlowServiceStub, digits: UInt8Array, bundle: Bundle, engine: Engine
) -> None:
    images = digits[:40]
    response = stub.Score(pb.ScoreRequest(images=raw(images), seed=11))
    expected = engine.forward(images, dequantization_noise(11, images)).log_likelihood
    np.testing.assert_allclose(nats(response), expected, rtol=1e-6)
    assert (response.model.name, response.model.version, response.seed) == ("digits", 1, 11)
    held_out = np.array(bundle.manifest.calibration.bits_per_dim)
    for score in response.scores:
        assert score.finite
        assert score.bits_per_dim == pytest.approx(-score.log_likelihood / (64 * np.log(2)))
        less_likely = (held_out > score.bits_per_dim).mean() + 0.5 * (held_out == score.bits_per_dim).mean()
        assert score.percentile == pytest.approx(100 * less_likely)


def test_held_out_digits_are_likelier_than_noise(
    stub: GlowServiceStub, digits: UInt8Array, rng: np.random.Generator
) -> None:
    noise = rng.integers(0, 256, digits.shape, dtype=np.uint8)
    known, unknown = (stub.Score(pb.ScoreRequest(images=raw(images))).scores for images in (digits, noise))
    assert max(score.bits_per_dim for score in known) < min(score.bits_per_dim for score in unknown)
    assert 20 < np.median([score.percentile for score in known]) < 80
    assert {score.percentile for score in unknown} == {0}


@pytest.mark.parametrize("form", ["PNG", "WEBP"])
def test_a_lossless_file_scores_as_its_pixels_do(
    stub: GlowServiceStub, digits: UInt8Array, form: str
) -> None:
    images = digits[:10]
    files = [file_of(to_pil(image), form, lossless=True) for image in images]
    assert nats(stub.Score(pb.ScoreRequest(images=encoded(*files)))) == nats(
        stub.Score(pb.ScoreRequest(images=raw(images)))
    )


def rotated(form: str) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return file_of(drawing("RGB"), form, exif=exif)


def drawing(mode: str, width: int = 31, height: int = 17) -> Image.Image:
    rows, columns = np.mgrid[:height, :width]
    red, green, blue = 7 * rows, 5 * columns, 3 * (rows + columns)
    alpha = np.where(rows > columns, 255, 40)
    rgba = (np.stack([red, green, blue, alpha], axis=-1) % 256).astype(np.uint8)
    if mode == "I;16":
        return Image.fromarray((257 * rgba[..., 0].astype(np.uint16)).astype(np.uint16))
    return Image.fromarray(rgba).convert(mode)


PICTURES = {
    "jpeg of this size": lambda: file_of(drawing("L", 8, 8), "JPEG"),
    "webp with loss": lambda: file_of(drawing("RGB"), "WEBP", quality=40),
    "large rgb": lambda: file_of(drawing("RGB", 300, 200), "PNG"),
    "one pixel": lambda: file_of(drawing("RGB", 1, 1), "PNG"),
    "wide": lambda: file_of(drawing("L", 200, 3), "PNG"),
    "transparent": lambda: file_of(drawing("RGBA"), "PNG"),
    "transparent grey": lambda: file_of(drawing("LA"), "PNG"),
    "palette": lambda: file_of(drawing("P"), "PNG"),
    "black and white": lambda: file_of(drawing("1"), "PNG"),
    "16 bits": lambda: file_of(drawing("I;16"), "PNG"),
    "cmyk": lambda: file_of(drawing("CMYK"), "JPEG"),
    "on its side": lambda: rotated("JPEG"),
    "animation": lambda: file_of(
        drawing("RGB"), "WEBP", save_all=True, append_images=[drawing("RGB").rotate(90)], lossless=True
    ),
}


@pytest.mark.parametrize("kind", PICTURES)
def test_a_picture_of_another_size_or_kind_is_prepared_as_in_training(
    stub: GlowServiceStub, bundle: Bundle, kind: str
) -> None:
    data = PICTURES[kind]()
    prepared = prepare_encoded(data, *bundle.shape, bundle.preparation)
    response = stub.Score(pb.ScoreRequest(images=encoded(data)))
    assert nats(response) == nats(stub.Score(pb.ScoreRequest(images=raw(prepared[None]))))


def test_the_scores_of_many_images_come_in_the_order_of_the_request(
    stub: GlowServiceStub, digits: UInt8Array, rng: np.random.Generator
) -> None:
    images = np.concatenate([digits, digits[:77]])[rng.permutation(256)]
    alone = [nats(stub.Score(pb.ScoreRequest(images=raw(image[None]))))[0] for image in images]
    assert len(set(alone)) > 150
    np.testing.assert_allclose(nats(stub.Score(pb.ScoreRequest(images=raw(images)))), alone, rtol=1e-6)
    files = [encode_png(image) for image in images]
    np.testing.assert_allclose(nats(stub.Score(pb.ScoreRequest(images=encoded(*files)))), alone, rtol=1e-6)


def test_a_call_is_answered_alike_alone_and_among_64_others(
    server: Server, stub: GlowServiceStub, digits: UInt8Array, rng: np.random.Generator
) -> None:
    requests = [
        pb.ScoreRequest(
            images=raw(digits[rng.integers(0, len(digits), rng.integers(1, 20))]), seed=rng.integers(0, 2**63)
        )
        for _ in range(128)
    ]
    alone = [nats(stub.Score(request)) for request in requests]
    with ThreadPoolExecutor(64) as pool:
        together = [nats(response) for response in pool.map(stub.Score, requests)]
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-5)


def test_the_seed_decides_the_noise_and_is_0_unless_given(stub: GlowServiceStub, digits: UInt8Array) -> None:
    images = raw(digits[:5])
    default = stub.Score(pb.ScoreRequest(images=images))
    assert default.seed == 0
    assert nats(default) == nats(stub.Score(pb.ScoreRequest(images=images, seed=0)))
    for seed in (1, 2**64 - 1):
        other = stub.Score(pb.ScoreRequest(images=images, seed=seed))
        assert other.seed == seed
        assert not set(nats(other)) & set(nats(default))
        np.testing.assert_allclose(nats(other), nats(default), atol=64)


def test_an_image_scores_alike_wherever_it_stands(stub: GlowServiceStub, digits: UInt8Array) -> None:
    first, second = digits[0], digits[1]
    scores = nats(stub.Score(pb.ScoreRequest(images=raw(np.stack([first, second, second, first])))))
    np.testing.assert_allclose(scores[:2], scores[:1:-1], rtol=1e-6)
    assert scores[0] != scores[1]


# Sample


def test_the_messages_of_a_stream_join_without_gap_and_say_the_seed(stub: GlowServiceStub) -> None:
    responses = list(stub.Sample(pb.SampleRequest(n=100, seed=3, temperature=0, format=pb.IMAGE_FORMAT_RAW)))
    assert len(responses) > 1
    sizes = [len(images_of(response.images)) for response in responses]
    assert sum(sizes) == 100
    assert [response.first_index for response in responses] == np.cumsum([0, *sizes[:-1]]).tolist()
    assert {response.seed for response in responses} == {3}
    assert {(response.model.name, response.model.version) for response in responses} == {("digits", 1)}
    assert {tuple(response.images.tensor.shape[1:]) for response in responses} == {(8, 8, 1)}


# A model that was trained for seconds draws something that is not finite now and then, at a temperature of 1.
COOL = 0.7


def draw(stub: GlowServiceStub, **fields: Any) -> UInt8Array:
    request = pb.SampleRequest(**{"temperature": COOL} | fields)
    return np.concatenate([images_of(response.images) for response in stub.Sample(request)])


def test_a_sample_is_what_the_graph_makes_of_the_documented_latent(
    stub: GlowServiceStub, engine: Engine
) -> None:
    expected = engine.reverse(latents(9, 0, 40, 64) * np.float32(0.7)).image
    np.testing.assert_array_equal(draw(stub, n=40, seed=9, temperature=0.7), expected)


def test_a_sample_is_the_same_however_many_are_drawn(stub: GlowServiceStub) -> None:
    many = draw(stub, n=70, seed=5)
    for n in (1, 5, 32, 33):
        np.testing.assert_array_equal(draw(stub, n=n, seed=5), many[:n])
    assert len({image.tobytes() for image in many}) == 70


def test_samples_are_the_same_alone_and_among_others(stub: GlowServiceStub, digits: UInt8Array) -> None:
    alone = [draw(stub, n=50, seed=seed, format=pb.IMAGE_FORMAT_RAW) for seed in range(16)]
    with ThreadPoolExecutor(32) as pool:
        scoring = [pool.submit(stub.Score, pb.ScoreRequest(images=raw(digits[:9]))) for _ in range(32)]
        together = pool.map(lambda seed: draw(stub, n=50, seed=seed, format=pb.IMAGE_FORMAT_RAW), range(16))
        for one, other in zip(alone, together, strict=True):
            np.testing.assert_array_equal(other, one)
        assert len({tuple(nats(future.result())) for future in scoring}) == 1


def test_png_and_raw_samples_are_the_same_images(stub: GlowServiceStub) -> None:
    raw_images = draw(stub, n=40, seed=1, format=pb.IMAGE_FORMAT_RAW)
    np.testing.assert_array_equal(draw(stub, n=40, seed=1, format=pb.IMAGE_FORMAT_PNG), raw_images)
    (response,) = stub.Sample(pb.SampleRequest(n=3, temperature=COOL))
    assert len(response.images.encoded.data) == 3
    assert all(data.startswith(b"\x89PNG") for data in response.images.encoded.data)


def test_a_seed_that_the_server_drew_gives_the_same_images_again(stub: GlowServiceStub) -> None:
    seeds = set()
    for _ in range(3):
        (response,) = stub.Sample(pb.SampleRequest(n=4, temperature=COOL))
        np.testing.assert_array_equal(draw(stub, n=4, seed=response.seed), images_of(response.images))
        seeds.add(response.seed)
    assert len(seeds) == 3


def test_a_seed_of_0_is_a_seed(stub: GlowServiceStub) -> None:
    np.testing.assert_array_equal(draw(stub, n=4, seed=0), draw(stub, n=4, seed=0))


def test_the_temperature_is_1_unless_given_and_0_makes_all_images_one(stub: GlowServiceStub) -> None:
    default = draw(stub, n=4, seed=8, temperature=None)
    np.testing.assert_array_equal(draw(stub, n=4, seed=8, temperature=1.0), default)
    assert (draw(stub, n=4, seed=8, temperature=COOL) != default).any()
    cold = draw(stub, n=20, seed=8, temperature=0.0)
    assert len({image.tobytes() for image in cold}) == 1
    np.testing.assert_array_equal(draw(stub, n=1, seed=9, temperature=0.0), cold[:1])


def test_an_idle_server_draws_any_number_whatever_its_queue_and_batches(
    run_server: Callable[..., Any], stub: GlowServiceStub
) -> None:
    expected = draw(stub, n=100, seed=2)
    for settings in (
        {"max_queue_size": 40, "max_images_per_call": 40, "instances": 4},
        {"max_queue_size": 1, "max_images_per_call": 1, "max_batch_size": 1},
        {"max_batch_size": 7},
        {"max_queue_delay_ms": 5.0},
    ):
        with run_server(**settings) as server, grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            np.testing.assert_array_equal(draw(GlowServiceStub(channel), n=100, seed=2), expected)


# Encode and Decode


def test_held_out_images_come_back_from_their_latents_exactly(
    stub: GlowServiceStub, digits: UInt8Array, engine: Engine
) -> None:
    response = stub.Encode(pb.EncodeRequest(images=raw(digits)))
    assert list(response.latents.shape) == [len(digits), 64]
    assert list(response.mismatched_values) == len(digits) * [0]
    assert (response.model.name, response.model.version) == ("digits", 1)
    latent = np.frombuffer(response.latents.data, "<f4").reshape(-1, 64)
    expected = engine.forward(digits, np.full(digits.shape, 0.5, np.float32)).latent
    np.testing.assert_allclose(latent, expected, rtol=1e-4, atol=1e-5)
    for form in (pb.IMAGE_FORMAT_RAW, pb.IMAGE_FORMAT_PNG):
        decoded = stub.Decode(pb.DecodeRequest(latents=response.latents, format=form))
        np.testing.assert_array_equal(images_of(decoded.images) >> 4, digits >> 4)
        assert (decoded.model.name, decoded.model.version) == ("digits", 1)


def test_decoding_the_latents_of_a_seed_gives_its_samples(stub: GlowServiceStub) -> None:
    response = stub.Decode(pb.DecodeRequest(latents=latent_tensor(latents(4, 0, 40, 64, COOL))))
    np.testing.assert_array_equal(images_of(response.images), draw(stub, n=40, seed=4))


def test_a_picture_encodes_as_the_image_that_it_is_prepared_to(stub: GlowServiceStub, bundle: Bundle) -> None:
    data = file_of(drawing("RGB"), "PNG")
    prepared = prepare_encoded(data, *bundle.shape, bundle.preparation)
    assert (
        stub.Encode(pb.EncodeRequest(images=encoded(data))).latents
        == stub.Encode(pb.EncodeRequest(images=raw(prepared[None]))).latents
    )


# Models


def test_the_model_is_listed_and_described(stub: GlowServiceStub, bundle: Bundle) -> None:
    (summary,) = stub.ListModels(pb.ListModelsRequest()).models
    assert (summary.model.name, summary.model.version) == ("digits", 1)
    assert summary.image == bundle.manifest.image
    for spec in (None, pb.ModelSpec(name="digits"), pb.ModelSpec(version=1)):
        assert stub.GetModel(pb.GetModelRequest(model=spec)).manifest == bundle.manifest


def copied(source: Path, target: Path, **changes: Any) -> Path:
    """A copy of a bundle whose manifest says something else."""
    shutil.copytree(source, target)
    manifest = json.dumps(json.loads((target / "manifest.json").read_text()) | changes).encode()
    (target / "manifest.json").write_bytes(manifest)
    (target / "manifest.json.sha256").write_bytes(manifest_checksum(manifest))
    return target


@pytest.fixture(scope="module")
def two_models(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("two_models")
    copied(repository / "digits" / "1", path / "digits" / "2", version="2")
    copied(repository / "digits" / "1", path / "digits" / "10", version="10")
    copied(repository / "digits" / "1", path / "other" / "1", model="other")
    return path


def test_with_two_models_the_name_says_which(
    run_server: Callable[..., Any], two_models: Path, digits: UInt8Array
) -> None:
    with (
        run_server(repository=two_models) as server,
        grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel,
    ):
        stub = GlowServiceStub(channel)
        listed = [
            (entry.model.name, entry.model.version)
            for entry in stub.ListModels(pb.ListModelsRequest()).models
        ]
        assert listed == [("digits", 10), ("other", 1)]
        tensor = latent_tensor(np.zeros((1, 64), np.float32))
        calls: dict[str, Callable[[pb.ModelSpec | None], Any]] = {
            "Score": lambda spec: stub.Score(pb.ScoreRequest(model=spec, images=raw(digits[:2]))),
            "Sample": lambda spec: next(stub.Sample(pb.SampleRequest(model=spec, n=1, temperature=0))),
            "Encode": lambda spec: stub.Encode(pb.EncodeRequest(model=spec, images=raw(digits[:2]))),
            "Decode": lambda spec: stub.Decode(pb.DecodeRequest(model=spec, latents=tensor)),
            "GetModel": lambda spec: stub.GetModel(pb.GetModelRequest(model=spec)).manifest,
        }
        for name, call in calls.items():
            for spec in (None, pb.ModelSpec(), pb.ModelSpec(version=1)):
                code, message = refusal(lambda call=call, spec=spec: call(spec))
                assert code is grpc.StatusCode.INVALID_ARGUMENT, name
                assert "model.name is empty" in message
                assert "digits version 10" in message
                assert "other version 1" in message
            for model, version in listed:
                for asked in (0, version):
                    answer = call(pb.ModelSpec(name=model, version=asked))
                    said = answer if name == "GetModel" else answer.model
                    assert (getattr(said, "model" if name == "GetModel" else "name"), said.version) == (
                        model,
                        version,
                    )
            code, message = refusal(lambda call=call: call(pb.ModelSpec(name="digits", version=2)))
            assert code is grpc.StatusCode.NOT_FOUND, name
            assert "model.version 2 of 'digits'" in message


# Numbers that leave the range of float32


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
            result = getattr(Engine(bundle, device="cpu", threads=1).forward(digits, noise), what)
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


# Load, cancellation, deadlines


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def value(server: Server, name: str, **labels: str) -> float:
    return server.metrics.registry.get_sample_value(f"glowserve_{name}", labels) or 0


def load(server: Server) -> tuple[float, float]:
    """Calls in flight, and images that wait."""
    waiting = [
        value(server, "queue_length", model="digits", direction=direction)
        for direction in ("forward", "reverse")
    ]
    return value(server, "requests_in_flight"), sum(waiting)


def test_a_full_queue_refuses_some_and_answers_the_rest_right(
    run_server: Callable[..., Any], stub: GlowServiceStub, digits: UInt8Array
) -> None:
    expected = nats(stub.Score(pb.ScoreRequest(images=raw(digits))))
    answers: list[tuple[grpc.StatusCode, str]] = []

    def ask(first: int) -> None:
        request = pb.ScoreRequest(images=raw(digits[first : first + 12]))
        try:
            response = busy.Score(request)
        except grpc.RpcError as error:
            answers.append((error.code(), error.details()))
        else:
            answers.append((grpc.StatusCode.OK, ""))
            np.testing.assert_allclose(nats(response), expected[first : first + 12], rtol=1e-5)

    with (
        run_server(max_queue_size=16, max_images_per_call=16, max_batch_size=4, instances=1) as server,
        grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel,
        ThreadPoolExecutor(32) as pool,
    ):
        busy = GlowServiceStub(channel)
        for _ in range(20):
            list(pool.map(ask, range(160)))
            if len({code for code, _ in answers}) > 1:
                break
        wait_for(lambda: load(server) == (0, 0))
        ask(0)
    assert {code for code, _ in answers} == {grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED}
    assert all("try again later" in message for code, message in answers if code is not grpc.StatusCode.OK)
    assert answers[-1] == (grpc.StatusCode.OK, "")


def test_a_stream_that_has_begun_is_not_refused_midway(
    run_server: Callable[..., Any], stub: GlowServiceStub
) -> None:
    """Nor is an encoding whose second half finds a full queue."""
    expected = draw(stub, n=1000, seed=1, format=pb.IMAGE_FORMAT_RAW)
    rows = latent_tensor(latents(0, 0, 8, 64, COOL))
    codes: list[grpc.StatusCode] = []
    ended = threading.Event()

    def crowd() -> None:
        while not ended.is_set():
            try:
                busy.Decode(pb.DecodeRequest(latents=rows, format=pb.IMAGE_FORMAT_RAW))
                codes.append(grpc.StatusCode.OK)
            except grpc.RpcError as error:
                codes.append(error.code())

    def patiently(call: Callable[[], Any]) -> Any:
        """Its answer, where it may be refused at first."""
        while True:
            try:
                return call()
            except grpc.RpcError as error:
                if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
                    raise
                time.sleep(0.01)

    with (
        run_server(max_queue_size=8, max_images_per_call=8, max_batch_size=8, instances=2) as server,
        grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel,
        ThreadPoolExecutor(6) as pool,
    ):
        busy = GlowServiceStub(channel)
        crowds = [pool.submit(crowd) for _ in range(6)]
        try:
            request = pb.SampleRequest(n=1000, seed=1, temperature=COOL, format=pb.IMAGE_FORMAT_RAW)

            def begun() -> tuple[Any, pb.SampleResponse]:
                stream = busy.Sample(request)
                return stream, next(stream)

            stream, first = patiently(begun)
            responses = [first, *stream]
            encoding = pb.EncodeRequest(images=raw(expected[:8]))
            encodings = [patiently(lambda: busy.Encode(encoding)) for _ in range(20)]
        finally:
            ended.set()
            for each in crowds:
                each.result()
    np.testing.assert_array_equal(
        np.concatenate([images_of(response.images) for response in responses]), expected
    )
    assert {len(response.mismatched_values) for response in encodings} == {8}
    assert set(codes) == {grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED}


def test_pictures_that_wait_to_be_prepared_are_bounded_too(run_server: Callable[..., Any]) -> None:
    slow = file_of(Image.new("1", (4000, 4000)), "PNG")
    request = pb.ScoreRequest(images=encoded(slow, slow))
    with (
        run_server(max_queue_size=4, max_images_per_call=4, max_batch_size=4) as server,
        grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel,
    ):
        stub = GlowServiceStub(channel)
        calls = [stub.Score.future(request) for _ in range(20)]
        codes = [call.code() for call in calls]
        assert set(codes) == {grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED}
        refused = next(call for call in calls if call.code() is not grpc.StatusCode.OK)
        assert "try again later" in refused.details()
        assert len(stub.Score(request).scores) == 2


@pytest.fixture
def patient_server(run_server: Callable[..., Any]) -> Iterator[Server]:
    """A server that holds images back until a batch of 32 is full: calls wait for as long as a test needs."""
    with run_server(max_queue_delay_ms=600_000.0, drain_seconds=0.0) as server:
        yield server


def test_what_a_caller_cancels_is_dropped(patient_server: Server, digits: UInt8Array) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{patient_server.port}") as channel:
        stub = GlowServiceStub(channel)
        calls = [stub.Score.future(pb.ScoreRequest(images=raw(digits[:5]))) for _ in range(4)]
        wait_for(lambda: load(patient_server) == (4, 20))
        calls.pop().cancel()
        wait_for(lambda: load(patient_server) == (3, 15))
        full = stub.Score.future(pb.ScoreRequest(images=raw(digits[:17])))
        assert len(full.result(60).scores) == 17
        assert [len(call.result(60).scores) for call in calls] == [5, 5, 5]
        wait_for(lambda: load(patient_server) == (0, 0))
    assert value(patient_server, "requests_total", method="Score", model="digits", code="CANCELLED") == 1
    assert value(patient_server, "batch_size_sum", model="digits", direction="forward") == 32


def test_what_is_past_its_deadline_is_dropped(patient_server: Server, digits: UInt8Array) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{patient_server.port}") as channel:
        stub = GlowServiceStub(channel)
        for call in (
            lambda: stub.Score(pb.ScoreRequest(images=raw(digits[:5])), timeout=0.5),
            lambda: stub.Encode(pb.EncodeRequest(images=raw(digits[:5])), timeout=0.5),
            lambda: list(stub.Sample(pb.SampleRequest(n=5), timeout=0.5)),
        ):
            assert refusal(call)[0] is grpc.StatusCode.DEADLINE_EXCEEDED
        wait_for(lambda: load(patient_server) == (0, 0))
    for direction in ("forward", "reverse"):
        assert value(patient_server, "batch_size_count", model="digits", direction=direction) == 0


def test_a_stream_that_fails_takes_what_it_drew_ahead_with_it(run_server: Callable[..., Any]) -> None:
    """The first four fail at once; the other two would wait for company for ever."""
    settings = {"max_batch_size": 4, "instances": 2, "max_queue_delay_ms": 600_000.0, "drain_seconds": 0.0}
    with (
        run_server(**settings) as server,
        grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel,
    ):
        request = pb.SampleRequest(n=6, seed=0, temperature=1e30)
        code, message = refusal(lambda: list(GlowServiceStub(channel).Sample(request, timeout=60)))
        assert code is grpc.StatusCode.FAILED_PRECONDITION, message
        wait_for(lambda: load(server) == (0, 0))


def test_a_large_call_may_be_cancelled_midway(
    server: Server, stub: GlowServiceStub, digits: UInt8Array, rng: np.random.Generator
) -> None:
    images = np.concatenate([digits, digits])[:256]
    for _ in range(10):
        calls = [stub.Score.future(pb.ScoreRequest(images=raw(images))) for _ in range(4)]
        time.sleep(rng.uniform(0, 0.05))
        for call in calls:
            call.cancel()
        wait_for(lambda: load(server) == (0, 0))
    assert len(stub.Score(pb.ScoreRequest(images=raw(images))).scores) == 256


def test_a_stream_may_be_left_midway(server: Server, stub: GlowServiceStub) -> None:
    for taken in (1, 3):
        stream = stub.Sample(pb.SampleRequest(n=100_000, temperature=0))
        for _ in range(taken):
            next(stream)
        assert load(server)[0] == 1
        stream.cancel()
        wait_for(lambda: load(server) == (0, 0))
    assert len(draw(stub, n=40)) == 40


def test_a_stream_that_nobody_reads_does_not_run_ahead(run_server: Callable[..., Any]) -> None:
    """gRPC buffers some megabytes; all of it would be 64 MB."""
    with (
        run_server(max_samples_per_call=1_000_000, max_batch_size=1000) as server,
        grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel,
    ):
        request = pb.SampleRequest(n=1_000_000, temperature=0, format=pb.IMAGE_FORMAT_RAW)
        stream = GlowServiceStub(channel).Sample(request)
        next(stream)
        before, now = -1.0, 0.0
        while now != before:
            time.sleep(0.5)
            before, now = now, value(server, "batch_size_sum", model="digits", direction="reverse")
        assert now < 500_000
        stream.cancel()
        wait_for(lambda: load(server) == (0, 0))


def test_streams_that_have_begun_are_never_refused(run_server: RunServer) -> None:
    """Many streams at once on a small queue: each is refused before its first image, or ends well."""
    with run_server(max_queue_size=64, max_images_per_call=32, max_batch_size=32) as running:
        target = f"127.0.0.1:{running.port}"

        async def draw(client: glowserve.AsyncClient) -> int:
            n = 0
            try:
                async for samples in client.iter_samples(320, seed=1, temperature=COOL):
                    n += len(samples)
            except glowserve.RequestError as error:
                if error.code is not grpc.StatusCode.RESOURCE_EXHAUSTED:
                    raise
            return n

        async def main() -> list[int]:
            async with glowserve.AsyncClient(target) as client:
                return await asyncio.gather(*[draw(client) for _ in range(20)])

        drawn = asyncio.run(main())
        assert set(drawn) <= {0, 320}
        assert 320 in drawn
        assert 0 in drawn


def test_an_open_stream_of_reflection_does_not_hold_up_the_end(run_server: RunServer) -> None:
    ended = threading.Event()

    def requests() -> Iterator[reflection_pb2.ServerReflectionRequest]:
        yield reflection_pb2.ServerReflectionRequest(list_services="")
        ended.wait(60)

    with run_server(drain_seconds=60) as running:
        channel = grpc.insecure_channel(f"127.0.0.1:{running.port}")
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        answers = stub.ServerReflectionInfo(requests())  # a call ends with the last reference to it
        assert next(answers).HasField("list_services_response")
        began = time.monotonic()
    assert time.monotonic() - began < 30
    assert refusal(lambda: next(answers))[0] is grpc.StatusCode.UNAVAILABLE
    ended.set()
    channel.close()


def test_a_manifest_of_another_shape_than_its_graphs_is_refused(
    repository: Path, tmp_path: Path, run_server: RunServer
) -> None:
    image = {"height": 4, "width": 8, "channels": 1, "n_bits": 4, "latent_size": 32}
    copied(repository / "digits" / "1", tmp_path / "digits" / "1", image=image)
    with pytest.raises(BundleError, match="not what the manifest says"), run_server(repository=tmp_path):
        pass
