"""GlowService.Manipulate: the images along attributes, its limits, its errors and its metrics."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from glowserve_service.server import Server

import glowserve
from glowserve.images import UInt8Array, encode_png
from glowserve.messages import images_array
from glowserve.runtime.attributes import Attributes, bundle_attributes
from glowserve.runtime.repository import newest_bundle
from glowserve.v1 import glow_service_pb2 as pb
from glowserve.v1.glow_service_pb2_grpc import GlowServiceStub
from tests.servers import RunServer
from tests.service.marks import reads_call_lines
from tests.service.metrics import ended, value
from tests.service.stubs import connect
from tests.service.wire import encoded, latent_tensor, raw, refusal

INVALID, PRECONDITION = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION


@pytest.fixture(scope="module")
def server(run_server: RunServer, attributed_repository: Path) -> Iterator[Server]:
    """A server of the model with attributes; `client` calls it, too."""
    with run_server(repository=attributed_repository, max_images_per_call=9) as running:
        yield running


@pytest.fixture
def stub(server: Server) -> Iterator[GlowServiceStub]:
    with connect(server) as stubs:
        yield stubs.glow


@pytest.fixture(scope="module")
def attributes(attributed_repository: Path) -> Attributes:
    return bundle_attributes(newest_bundle(attributed_repository / "digits"))


def manipulate(**changes: Any) -> pb.ManipulateRequest:
    """A request along "bright", with other fields."""
    return pb.ManipulateRequest(**{"attributes": ["bright"], "strengths": [-1, 0, 1]} | changes)


@pytest.mark.parametrize("form", [pb.IMAGE_FORMAT_RAW, pb.IMAGE_FORMAT_PNG])
def test_an_image_is_encoded_moved_and_decoded(
    stub: GlowServiceStub,
    client: glowserve.Client,
    attributes: Attributes,
    digits: UInt8Array,
    form: pb.ImageFormat,
) -> None:
    response = stub.Manipulate(manipulate(images=raw(digits[:1]), format=form))
    assert (response.model.name, response.model.version) == ("digits", 1)
    assert response.images.WhichOneof("source") == ("tensor" if form == pb.IMAGE_FORMAT_RAW else "encoded")
    images = images_array(response.images)
    latents = client.encode(digits[:1]).latents + np.array([[-1], [0], [1]]) * attributes.directions[0]
    np.testing.assert_array_equal(images, client.decode(latents))
    np.testing.assert_array_equal(images[1], digits[0])
    ink = images.sum(axis=(1, 2, 3), dtype=np.int64)
    assert ink[0] < ink[1] < ink[2]


def test_a_picture_or_a_latent_gives_the_same_images(
    stub: GlowServiceStub, client: glowserve.Client, digits: UInt8Array
) -> None:
    both = {"attributes": ["top", "bright"], "strengths": [0.5], "format": pb.IMAGE_FORMAT_RAW}
    latents = latent_tensor(client.encode(digits[:1]).latents)
    answers = [
        stub.Manipulate(manipulate(**both, **source))
        for source in (
            {"images": raw(digits[:1])},
            {"images": encoded(encode_png(digits[0]))},
            {"latents": latents},
        )
    ]
    assert answers[0] == answers[1] == answers[2]


LATENTS = np.zeros((1, 64), np.float32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "images is empty: set images or latents"),
        ({"images": pb.Images()}, "images is empty: set images.encoded"),
        ({"images": raw(np.zeros((2, 8, 8, 1), np.uint8))}, "images.tensor.shape[0]: 2 images; it takes one"),
        ({"images": encoded(b"?", b"?")}, "images.encoded.data: 2 images; it takes one"),
        ({"images": encoded(b"?")}, "images.encoded.data[0]: 1 bytes are not a picture"),
        ({"latents": latent_tensor(np.zeros((2, 64), np.float32))}, "latents.shape[0]: 2 latents; it takes"),
        ({"latents": latent_tensor(LATENTS[:, 1:])}, "latents.shape is [1, 63]"),
        ({"latents": latent_tensor(LATENTS * np.nan)}, "latents: row 0 is not finite"),
        ({"attributes": []}, "attributes is empty; the attributes are bright, top"),
        ({"attributes": ["blond"]}, "attributes[0] is 'blond'; the attributes are bright, top"),
        ({"attributes": ["top", "top"]}, "attributes[1] is 'top' once more"),
        ({"strengths": []}, "strengths has 0 values; it must have 1 to 9, one for each image"),
        ({"strengths": [0] * 10}, "strengths has 10 values"),
        ({"strengths": [0, float("nan")]}, "strengths[1] is nan; it must be finite"),
        ({"strengths": [float("-inf")]}, "strengths[0] is -inf; it must be finite"),
        ({"format": 7}, "format is 7"),
        ({"strengths": [0] * 2000}, "strengths: the request has more than 1042 fields"),
        ({"attributes": ["a"] * 2000}, "attributes: the request has more than 1042 fields"),
    ],
)
def test_a_malformed_request_is_refused(stub: GlowServiceStub, changes: dict[str, Any], message: str) -> None:
    given = changes.keys() & {"images", "latents"} or not changes
    request = manipulate(**changes if given else changes | {"latents": latent_tensor(LATENTS)})
    code, words = refusal(lambda: stub.Manipulate(request))
    assert code is INVALID
    assert words.startswith(message)


def test_a_strength_that_leads_beyond_float32_is_named(stub: GlowServiceStub) -> None:
    request = manipulate(latents=latent_tensor(LATENTS + 1), strengths=[0, 3e38, 0])
    outcome = refusal(lambda: stub.Manipulate(request))
    assert outcome == (PRECONDITION, "strengths: image 1 does not decode to a finite image")


def test_the_attributes_are_listed_and_a_model_without_any_names_the_command(
    client: glowserve.Client, embedded: glowserve.Client, digits: UInt8Array
) -> None:
    assert client.models()[0].attributes == ("bright", "top")
    assert embedded.models()[0].attributes == ()
    with pytest.raises(glowserve.RequestError, match="`glowserve attributes REPOSITORY/digits") as caught:
        embedded.manipulate(digits[0], "bright", 1)
    assert (caught.value.code, caught.value.reason) == (PRECONDITION, "MISSING_FILE")


@reads_call_lines
def test_one_image_is_encoded_and_one_decoded_for_each_strength(
    run_server: RunServer, attributed_repository: Path, digits: UInt8Array, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    with run_server(repository=attributed_repository) as server, connect(server) as stubs:
        stubs.glow.Manipulate(manipulate(images=raw(digits[:1])))
        stubs.glow.Manipulate(manipulate(latents=latent_tensor(LATENTS)))
        assert ended(server, "Manipulate", "OK") == 2
        for direction, images in (("forward", 1), ("reverse", 3 + 3)):
            assert value(server, "batch_size_sum", model="digits", direction=direction) == images
    image, latent = [record.message for record in caplog.records if "Manipulate" in record.message]
    assert "OK, 4 images in " in image
    assert "OK, 3 images in " in latent
