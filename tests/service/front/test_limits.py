"""The limits of one request: settings for images, samples, pixels and bytes, and compressed messages."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from PIL import Image

from glowserve.images import encode_png
from glowserve.oip import grpc_service_pb2 as oip
from glowserve.v1 import glow_service_pb2 as pb
from glowserve.v1.glow_service_pb2_grpc import GlowServiceStub
from tests.servers import RunServer
from tests.service.stubs import Stubs, connect
from tests.service.wire import encoded, file_of, latent_tensor, refusal

GOOD = encode_png(np.zeros((8, 8, 1), np.uint8))


def blank(width: int, height: int) -> bytes:
    return file_of(Image.new("1", (width, height)), "PNG")


def latents(n: int) -> Any:
    return latent_tensor(np.zeros((n, 64), np.float32))


@pytest.fixture(scope="module")
def limited(run_server: RunServer) -> Iterator[Stubs]:
    """A server with small limits."""
    limits = {"max_images_per_call": 3, "max_samples_per_call": 5, "max_pixels_per_call": 200}
    with run_server(**limits, max_message_mib=1) as server, connect(server) as stubs:
        yield stubs


@pytest.mark.parametrize(
    ("method", "allowed", "refused", "words"),
    [
        (
            "Score",
            pb.ScoreRequest(images=encoded(GOOD, GOOD, GOOD)),
            pb.ScoreRequest(images=encoded(*4 * [GOOD])),
            "1 to 3",
        ),
        (
            "Score",
            pb.ScoreRequest(images=encoded(blank(10, 10), blank(10, 10))),
            pb.ScoreRequest(images=encoded(blank(10, 10), blank(10, 11))),
            "at most 200",
        ),
        ("Sample", pb.SampleRequest(n=5, temperature=0), pb.SampleRequest(n=6), "1 to 5"),
        ("Decode", pb.DecodeRequest(latents=latents(3)), pb.DecodeRequest(latents=latents(4)), "1 to 3"),
    ],
    ids=["images", "pixels", "samples", "latents"],
)
def test_a_setting_bounds_each_request(
    limited: Stubs, method: str, allowed: Any, refused: Any, words: str
) -> None:
    def call(request: Any) -> None:
        response = getattr(limited.glow, method)(request)
        if method == "Sample":
            list(response)

    call(allowed)
    code, message = refusal(lambda: call(refused))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert words in message


def test_a_message_over_the_limit_is_refused_and_one_below_it_is_read(limited: Stubs) -> None:
    over = pb.ScoreRequest(images=encoded(GOOD, bytes(2**20)))
    code, message = refusal(lambda: limited.glow.Score(over))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "1048576" in message
    below = pb.ScoreRequest(images=encoded(GOOD, bytes(2**20 - 500)))
    code, message = refusal(lambda: limited.glow.Score(below))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "images.encoded.data[1]" in message


def test_the_limit_holds_for_the_open_inference_protocol_too(limited: Stubs) -> None:
    request = oip.ModelInferRequest(model_name="digits", raw_input_contents=[bytes(2**20)])
    code, _ = refusal(lambda: limited.inference.ModelInfer(request))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_a_message_over_grpcs_default_limit_is_read(stub: GlowServiceStub) -> None:
    request = pb.ScoreRequest(images=encoded(GOOD, bytes(32 * 2**20)))
    code, message = refusal(lambda: stub.Score(request))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "images.encoded.data[1]: 33554432 bytes are not a picture" in message


def test_a_compressed_message_is_refused_before_it_is_unpacked(stub: GlowServiceStub) -> None:
    """gRPC checks the size of a message after it has unpacked it: a small one can become gigabytes."""
    request = pb.ScoreRequest(images=encoded(GOOD))
    code, _ = refusal(lambda: stub.Score(request, compression=grpc.Compression.Gzip))
    assert code is grpc.StatusCode.UNIMPLEMENTED
