"""GlowService.Interpolate: the images between two, its limits and its metrics."""

from __future__ import annotations

import grpc
import numpy as np
import pytest

import glowserve
from glowserve.images import UInt8Array, encode_png
from glowserve.messages import images_array
from glowserve.runtime.interpolation import interpolation_path
from glowserve.v1 import glow_service_pb2 as pb
from glowserve.v1.glow_service_pb2_grpc import GlowServiceStub
from tests.servers import RunServer
from tests.service.marks import reads_call_lines
from tests.service.metrics import ended, value
from tests.service.stubs import connect
from tests.service.wire import encoded, raw, refusal


@pytest.mark.parametrize("form", [pb.IMAGE_FORMAT_RAW, pb.IMAGE_FORMAT_PNG])
def test_the_images_are_decoded_from_the_path_between_two_latents(
    stub: GlowServiceStub, client: glowserve.Client, digits: UInt8Array, form: pb.ImageFormat
) -> None:
    encodings = client.encode(digits[:2])
    assert encodings.mismatched_values.tolist() == [0, 0]
    request = pb.InterpolateRequest(images=raw(digits[:2]), steps=70, format=form)
    response = stub.Interpolate(request)
    assert (response.model.name, response.model.version) == ("digits", 1)
    assert response.images.WhichOneof("source") == ("tensor" if form == pb.IMAGE_FORMAT_RAW else "encoded")
    images = images_array(response.images)
    np.testing.assert_array_equal(images[[0, -1]], digits[:2])
    path = interpolation_path(*encodings.latents, steps=70)
    np.testing.assert_array_equal(images, client.decode(path))
    assert len({image.tobytes() for image in images}) > 10


def test_all_images_between_an_image_and_itself_are_that_image(
    client: glowserve.Client, digits: UInt8Array
) -> None:
    images = client.interpolate(digits[3], digits[3], steps=5)
    np.testing.assert_array_equal(images, np.repeat(digits[3:4], 5, axis=0))


def test_the_two_images_may_be_pictures_of_any_size(stub: GlowServiceStub, client: glowserve.Client) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (50, 30, 3), np.uint8)
    files = [encode_png(noise), encode_png(noise[::-1].copy())]
    request = pb.InterpolateRequest(images=encoded(*files), steps=2)
    ends = images_array(stub.Interpolate(request).images)
    np.testing.assert_array_equal(ends, client.decode(client.encode(files).latents))


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
    request = pb.InterpolateRequest(images=raw(digits[:images]), steps=steps)
    outcome = refusal(lambda: stub.Interpolate(request))
    assert outcome == (grpc.StatusCode.INVALID_ARGUMENT, message)


@reads_call_lines
def test_two_images_are_encoded_and_all_steps_decoded(
    run_server: RunServer, digits: UInt8Array, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    with run_server() as server, connect(server) as stubs:
        stubs.glow.Interpolate(pb.InterpolateRequest(images=raw(digits[:2]), steps=3))
        assert ended(server, "Interpolate", "OK") == 1
        for direction, images in (("forward", 2), ("reverse", 3)):
            assert value(server, "batch_size_sum", model="digits", direction=direction) == images
    (line,) = [record.message for record in caplog.records if "Interpolate" in record.message]
    assert "OK, 5 images in " in line
