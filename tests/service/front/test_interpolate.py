"""Interpolate: the arc between latents, and what it decodes to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
import numpy as np
import pytest

import glowserve
from glowserve.images import UInt8Array, encode_png
from glowserve.messages import images_array
from glowserve.runtime.interpolation import interpolation_path
from glowserve.v1 import glow_service_pb2 as pb
from glowserve.v1.glow_service_pb2_grpc import GlowServiceStub
from tests.service.wire import raw

INVALID = grpc.StatusCode.INVALID_ARGUMENT


def angle(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> float:
    cosine = one @ other / np.linalg.norm(one) / np.linalg.norm(other)
    return float(np.arccos(np.clip(cosine, -1, 1)))


# The arc


@pytest.mark.parametrize("steps", [2, 3, 9])
def test_steps_lie_on_the_arc_at_equal_angles_and_as_far_out_as_the_ends(
    rng: np.random.Generator, steps: int
) -> None:
    start, end = rng.standard_normal((2, 3072)).astype(np.float32)
    end *= np.linalg.norm(start) / np.linalg.norm(end)
    path = interpolate(start, end, steps)
    assert (path.shape, path.dtype) == ((steps, 3072), np.float32)
    np.testing.assert_array_equal(path[[0, -1]], [start, end])
    np.testing.assert_allclose(np.linalg.norm(path, axis=1), np.linalg.norm(start), rtol=1e-6)
    turns = [angle(path[i].astype(float), path[i + 1].astype(float)) for i in range(steps - 1)]
    np.testing.assert_allclose(turns, angle(start.astype(float), end.astype(float)) / (steps - 1), rtol=1e-4)


def test_the_way_back_is_the_same_way(rng: np.random.Generator) -> None:
    start, end = rng.standard_normal((2, 64)).astype(np.float32) * np.array([[1], [50]], np.float32)
    np.testing.assert_allclose(
        interpolate(start, end, 7), interpolate(end, start, 7)[::-1], rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("factor", [1.0, 3.0, 1 + 1e-6, 0.0, -1.0, -2.0])
def test_latents_that_have_no_arc_are_joined_by_a_line(rng: np.random.Generator, factor: float) -> None:
    start = rng.standard_normal(64).astype(np.float32)
    path = interpolate(start, (factor * start).astype(np.float32), 5)
    shares = np.linspace(1, factor, 5)[:, None]
    np.testing.assert_allclose(path, shares * start, rtol=1e-5, atol=1e-6)


def test_latents_that_are_nearly_parallel_or_opposite_stay_finite(rng: np.random.Generator) -> None:
    start, aside = rng.standard_normal((2, 64)).astype(np.float32)
    for sign in (1, -1):
        for distance in np.geomspace(1e-8, 1e-1, 30):
            path = interpolate(start, (sign * start + distance * aside).astype(np.float32), 8)
            assert np.linalg.norm(path, axis=1).max() < 1.3 * np.linalg.norm(start)


# The method


@pytest.mark.parametrize("form", [pb.IMAGE_FORMAT_RAW, pb.IMAGE_FORMAT_PNG])
def test_the_way_is_encoded_bent_and_decoded(
    stub: GlowServiceStub, client: glowserve.Client, digits: UInt8Array, form: pb.ImageFormat
) -> None:
    encoded = client.encode(digits[:2])
    assert encoded.mismatched_values.tolist() == [0, 0]
    request = pb.InterpolateRequest(images=raw(digits[:2]), steps=70, format=form)
    response = stub.Interpolate(request)
    assert (response.model.name, response.model.version) == ("digits", 1)
    assert response.images.WhichOneof("source") == ("tensor" if form == pb.IMAGE_FORMAT_RAW else "encoded")
    images = images_array(response.images)
    np.testing.assert_array_equal(images[[0, -1]], digits[:2])
    np.testing.assert_array_equal(images, client.decode(interpolate(*encoded.latents, steps=70)))
    assert len({image.tobytes() for image in images}) > 10


def test_from_an_image_to_itself_it_stays(client: glowserve.Client, digits: UInt8Array) -> None:
    images = client.interpolate(digits[3], digits[3], steps=5)
    np.testing.assert_array_equal(images, np.repeat(digits[3:4], 5, axis=0))


def test_pictures_of_any_size_are_ends(stub: GlowServiceStub, client: glowserve.Client) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (50, 30, 3), np.uint8)
    files = [encode_png(noise), encode_png(noise[::-1].copy())]
    request = pb.InterpolateRequest(images=pb.Images(encoded=pb.EncodedImages(data=files)), steps=2)
    ends = images_array(stub.Interpolate(request).images)
    encoded = client.encode(files)
    np.testing.assert_array_equal(ends, client.decode(encoded.latents))


@pytest.mark.parametrize(
    ("images", "steps", "message"),
    [
        (2, 0, "steps is 0; it must lie in 2 to 256"),
        (2, 1, "steps is 1; it must lie in 2 to 256"),
        (2, 257, "steps is 257; it must lie in 2 to 256"),
        (1, 2, "images.tensor.shape[0]: 1 images; it takes two, the first and the last"),
        (3, 2, "images.tensor.shape[0]: 3 images; it takes two, the first and the last"),
        (0, 2, "images.tensor.shape[0]: 0 images; it takes two, the first and the last"),
    ],
)
def test_other_than_two_images_and_steps_out_of_range_are_refused(
    stub: GlowServiceStub, digits: UInt8Array, images: int, steps: int, message: str
) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        stub.Interpolate(pb.InterpolateRequest(images=raw(digits[:images]), steps=steps))
    assert (caught.value.code(), caught.value.details()) == (INVALID, message)


def test_it_is_counted_and_needs_no_more_than_the_right_to_infer(
    run_server: Callable[..., Any], digits: UInt8Array, tmp_path: Any
) -> None:
    (tmp_path / "tokens").write_text("app " + "a" * 32 + "\noperator " + "b" * 32 + " admin\n")
    with run_server(tokens=tmp_path / "tokens") as server:
        address = f"127.0.0.1:{server.port}"
        with glowserve.Client(address, token="a" * 32) as client:
            assert len(client.interpolate(digits[0], digits[1], steps=3)) == 3
        with (
            glowserve.Client(address, token="b" * 32) as client,
            pytest.raises(glowserve.RequestError, match="PERMISSION_DENIED"),
        ):
            client.interpolate(digits[0], digits[1])
        labels = {"method": "Interpolate", "model": "digits", "code": "OK"}
        value = server.metrics.registry.get_sample_value
        assert value("glowserve_requests_total", labels) == 1
        assert value("glowserve_batch_size_sum", {"model": "digits", "direction": "forward"}) == 2
        assert value("glowserve_batch_size_sum", {"model": "digits", "direction": "reverse"}) == 3
