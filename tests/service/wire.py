"""Messages that tests write and read without the client, calls that are refused, and waiting for a condition."""

from __future__ import annotations

import io
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import grpc
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from glowserve.images import UInt8Array, decode_png
from glowserve.runtime.manifest import manifest_checksum
from glowserve.v1 import glow_service_pb2 as pb
from glowserve.v1 import tensor_pb2
from glowserve.v1.glow_service_pb2_grpc import GlowServiceStub

T = TypeVar("T")

# Options of a channel: how much a server may send before the client reads it. gRPC would let it grow to megabytes.
SMALL_WINDOW = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 2**16 - 1)]


def raw(images: UInt8Array) -> pb.Images:
    """Images as a tensor."""
    tensor = tensor_pb2.Tensor(dtype="DATA_TYPE_UINT8", shape=images.shape, data=images.tobytes())
    return pb.Images(tensor=tensor)


def encoded(*files: bytes) -> pb.Images:
    """Images as the bytes of files."""
    return pb.Images(encoded=pb.EncodedImages(data=files))


def file_of(picture: Image.Image, form: str, **options: Any) -> bytes:
    """A picture as the bytes of a file."""
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return buffer.getvalue()


def latent_tensor(rows: npt.NDArray[np.float32]) -> tensor_pb2.Tensor:
    """Latents, [N, D]."""
    return tensor_pb2.Tensor(dtype="DATA_TYPE_FLOAT32", shape=rows.shape, data=rows.astype("<f4").tobytes())


def images_of(images: pb.Images) -> UInt8Array:
    """The images of a response, uint8 [N, H, W, C]."""
    if images.HasField("encoded"):
        return np.stack([decode_png(data) for data in images.encoded.data])
    assert images.tensor.dtype == tensor_pb2.DATA_TYPE_UINT8
    return np.frombuffer(images.tensor.data, np.uint8).reshape(tuple(images.tensor.shape))


def nats(response: pb.ScoreResponse) -> list[float]:
    """The log-likelihoods of a response."""
    return [score.log_likelihood for score in response.scores]


COOL = 0.7
"""A temperature at which every sample is finite. At 1, a model trained for seconds draws other ones now and then."""


def draw(stub: GlowServiceStub, **fields: Any) -> UInt8Array:
    """Samples, uint8 [N, H, W, C], of a request with these fields; the temperature is COOL unless given."""
    request = pb.SampleRequest(**{"temperature": COOL} | fields)
    return np.concatenate([images_of(response.images) for response in stub.Sample(request)])


def refusal(call: Callable[[], Any]) -> tuple[grpc.StatusCode, str]:
    """The status and message of a call that must fail."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value.code(), caught.value.details() or ""


def wait_for(condition: Callable[[], bool]) -> None:
    """Returns when the condition holds; fails after a minute. Asks ever more seldom: some conditions are calls."""
    end, pause = time.monotonic() + 60, 0.002
    while not condition():
        assert time.monotonic() < end, "the condition did not become true"
        time.sleep(pause)
        pause = min(1.2 * pause, 0.02)


def wait_until_still(state: Callable[[], T], seconds: float = 1.0) -> T:
    """Returns the state once it has not changed for so long; fails after a minute."""
    end, seen, since = time.monotonic() + 60, state(), time.monotonic()
    while time.monotonic() - since < seconds:
        assert time.monotonic() < end, "the state still changes"
        time.sleep(0.02)
        if (now := state()) != seen:
            seen, since = now, time.monotonic()
    return seen


def copied(source: Path, target: Path, **changes: Any) -> Path:
    """A copy of a bundle with other fields in its manifest."""
    shutil.copytree(source, target)
    manifest = json.dumps(json.loads((target / "manifest.json").read_text()) | changes).encode()
    (target / "manifest.json").write_bytes(manifest)
    (target / "manifest.json.sha256").write_bytes(manifest_checksum(manifest))
    return target
