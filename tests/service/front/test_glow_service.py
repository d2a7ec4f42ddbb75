"""GlowService: what Score, Sample, Encode and Decode answer, compared with the engine and the documented noise."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from glowserve.images import UInt8Array, encode_png, open_encoded, prepare, to_pil
from glowserve.runtime.engine import Engine
from glowserve.runtime.randomness import dequantization_noise, latents
from glowserve.runtime.repository import Bundle
from glowserve.v1 import glow_service_pb2 as pb
from glowserve.v1.glow_service_pb2_grpc import GlowServiceStub
from tests.servers import RunServer
from tests.service.stubs import connect
from tests.service.wire import (
    COOL,
    draw,
    encoded,
    file_of,
    images_of,
    latent_tensor,
    nats,
    raw,
)

# Score


def test_a_score_is_the_graphs_output_for_the_image_and_the_documented_noise(
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


def test_held_out_digits_are_likelier_than_random_pixels(
    stub: GlowServiceStub, digits: UInt8Array, rng: np.random.Generator
) -> None:
    noise = rng.integers(0, 256, digits.shape, dtype=np.uint8)
    known, unknown = (stub.Score(pb.ScoreRequest(images=raw(images))).scores for images in (digits, noise))
    assert max(score.bits_per_dim for score in known) < min(score.bits_per_dim for score in unknown)
    assert 20 < np.median([score.percentile for score in known]) < 80
    assert {score.percentile for score in unknown} == {0}


@pytest.mark.parametrize("form", ["PNG", "WEBP"])
def test_a_lossless_file_has_the_score_of_its_pixels(
    stub: GlowServiceStub, digits: UInt8Array, form: str
) -> None:
    images = digits[:10]
    files = [file_of(to_pil(image), form, lossless=True) for image in images]
    assert nats(stub.Score(pb.ScoreRequest(images=encoded(*files)))) == nats(
        stub.Score(pb.ScoreRequest(images=raw(images)))
    )


def prepared(data: bytes, bundle: Bundle) -> UInt8Array:
    """The image that a picture becomes before it is scored, with N = 1."""
    with open_encoded(data) as picture:
        return prepare(picture, *bundle.shape, bundle.preparation)[None]


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
    "rotated by its exif": lambda: rotated("JPEG"),
    "animation": lambda: file_of(
        drawing("RGB"), "WEBP", save_all=True, append_images=[drawing("RGB").rotate(90)], lossless=True
    ),
}


@pytest.mark.parametrize("kind", PICTURES)
def test_a_picture_of_another_size_or_kind_is_prepared_as_in_training(
    stub: GlowServiceStub, bundle: Bundle, kind: str
) -> None:
    data = PICTURES[kind]()
    response = stub.Score(pb.ScoreRequest(images=encoded(data)))
    assert nats(response) == nats(stub.Score(pb.ScoreRequest(images=raw(prepared(data, bundle)))))


def test_scores_are_in_the_order_of_the_images(
    stub: GlowServiceStub, digits: UInt8Array, rng: np.random.Generator
) -> None:
    images = np.concatenate([digits, digits[:77]])[rng.permutation(256)]
    alone = [nats(stub.Score(pb.ScoreRequest(images=raw(image[None]))))[0] for image in images]
    assert len(set(alone)) > 150
    np.testing.assert_allclose(nats(stub.Score(pb.ScoreRequest(images=raw(images)))), alone, rtol=1e-6)
    files = [encode_png(image) for image in images]
    np.testing.assert_allclose(nats(stub.Score(pb.ScoreRequest(images=encoded(*files)))), alone, rtol=1e-6)


def test_a_call_has_the_same_scores_alone_and_among_64_others(
    stub: GlowServiceStub, digits: UInt8Array, rng: np.random.Generator
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


def test_the_score_of_an_image_does_not_depend_on_its_place(
    stub: GlowServiceStub, digits: UInt8Array
) -> None:
    first, second = digits[0], digits[1]
    scores = nats(stub.Score(pb.ScoreRequest(images=raw(np.stack([first, second, second, first])))))
    np.testing.assert_allclose(scores[:2], scores[:1:-1], rtol=1e-6)
    assert scores[0] != scores[1]


# Sample


def test_the_messages_of_a_stream_hold_all_samples_in_order_and_the_seed(stub: GlowServiceStub) -> None:
    responses = list(stub.Sample(pb.SampleRequest(n=100, seed=3, temperature=0, format=pb.IMAGE_FORMAT_RAW)))
    assert len(responses) > 1
    sizes = [len(images_of(response.images)) for response in responses]
    assert sum(sizes) == 100
    assert [response.first_index for response in responses] == np.cumsum([0, *sizes[:-1]]).tolist()
    assert {response.seed for response in responses} == {3}
    assert {(response.model.name, response.model.version) for response in responses} == {("digits", 1)}
    assert {tuple(response.images.tensor.shape[1:]) for response in responses} == {(8, 8, 1)}


def test_a_sample_is_the_graphs_output_for_the_documented_latent(
    stub: GlowServiceStub, engine: Engine
) -> None:
    expected = engine.reverse(latents(9, 0, 40, 64) * np.float32(0.7)).image
    np.testing.assert_array_equal(draw(stub, n=40, seed=9, temperature=0.7), expected)


def test_a_sample_does_not_depend_on_how_many_are_drawn(stub: GlowServiceStub) -> None:
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


def test_a_seed_that_the_server_chose_gives_the_same_images_again(stub: GlowServiceStub) -> None:
    seeds = set()
    for _ in range(3):
        (response,) = stub.Sample(pb.SampleRequest(n=4, temperature=COOL))
        np.testing.assert_array_equal(draw(stub, n=4, seed=response.seed), images_of(response.images))
        seeds.add(response.seed)
    assert len(seeds) == 3


def test_a_seed_of_0_is_a_seed(stub: GlowServiceStub) -> None:
    np.testing.assert_array_equal(draw(stub, n=4, seed=0), draw(stub, n=4, seed=0))


def test_the_temperature_is_1_unless_given_and_at_0_all_images_are_equal(stub: GlowServiceStub) -> None:
    default = draw(stub, n=4, seed=8, temperature=None)
    np.testing.assert_array_equal(draw(stub, n=4, seed=8, temperature=1.0), default)
    assert (draw(stub, n=4, seed=8, temperature=COOL) != default).any()
    cold = draw(stub, n=20, seed=8, temperature=0.0)
    assert len({image.tobytes() for image in cold}) == 1
    np.testing.assert_array_equal(draw(stub, n=1, seed=9, temperature=0.0), cold[:1])


def test_an_idle_server_draws_any_number_with_any_queue_and_batch_size(
    run_server: RunServer, stub: GlowServiceStub
) -> None:
    expected = draw(stub, n=100, seed=2)
    for settings in (
        {"max_queue_size": 40, "max_images_per_call": 40, "instances": 4},
        {"max_queue_size": 1, "max_images_per_call": 1, "max_batch_size": 1},
        {"max_batch_size": 7},
        {"max_queue_delay_ms": 5.0},
    ):
        with run_server(**settings) as server, connect(server) as stubs:
            np.testing.assert_array_equal(draw(stubs.glow, n=100, seed=2), expected)


# Encode and Decode


def test_held_out_images_are_decoded_exactly_from_their_latents(
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


def test_decoding_the_latents_of_a_seed_gives_the_samples_of_that_seed(stub: GlowServiceStub) -> None:
    response = stub.Decode(pb.DecodeRequest(latents=latent_tensor(latents(4, 0, 40, 64, COOL))))
    np.testing.assert_array_equal(images_of(response.images), draw(stub, n=40, seed=4))


def test_a_picture_has_the_latent_of_the_image_that_is_prepared_from_it(
    stub: GlowServiceStub, bundle: Bundle
) -> None:
    data = file_of(drawing("RGB"), "PNG")
    assert (
        stub.Encode(pb.EncodeRequest(images=encoded(data))).latents
        == stub.Encode(pb.EncodeRequest(images=raw(prepared(data, bundle)))).latents
    )
