"""Malformed requests to GlowService: each gets its status and a message that names the field, and harms no other."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Any

import grpc
import numpy as np
import pytest
from glowserve_service.server import Server
from google.protobuf.message import Message
from grpc import StatusCode
from grpc_health.v1 import health_pb2, health_pb2_grpc
from PIL import Image

from glowserve.images import UInt8Array, encode_png
from glowserve.v1 import glow_service_pb2 as pb
from glowserve.v1 import tensor_pb2
from glowserve.v1.glow_service_pb2_grpc import GlowServiceStub
from tests.service.metrics import in_flight
from tests.service.wire import encoded, file_of, wait_for

INVALID, MISSING = StatusCode.INVALID_ARGUMENT, StatusCode.NOT_FOUND
UINT8, FLOAT32 = tensor_pb2.DATA_TYPE_UINT8, tensor_pb2.DATA_TYPE_FLOAT32
IMAGE = np.arange(64, dtype=np.uint8).reshape(1, 8, 8, 1) * 3


def tensor(shape: list[int], data: bytes | None = None, dtype: int = UINT8) -> tensor_pb2.Tensor:
    if data is None:
        data = bytes(int(np.prod(shape)) * (4 if dtype == FLOAT32 else 1))
    return tensor_pb2.Tensor(dtype=dtype, shape=shape, data=data)  # type: ignore[arg-type]


def latent_tensor(*values: float) -> tensor_pb2.Tensor:
    """Latents: a row for each value, which stands in one place of it among zeros."""
    rows = np.zeros((len(values), 64), "<f4")
    rows[:, 17] = values
    return tensor(list(rows.shape), rows.tobytes(), FLOAT32)


GOOD = encode_png(IMAGE[0])


def png_that_claims(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">2I5B", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


@cache
def blank(width: int, height: int) -> bytes:
    """A blank picture: few bytes, many pixels."""
    return file_of(Image.new("1", (width, height)), "PNG")


@dataclass(frozen=True)
class Case:
    """A malformed request, its status, and words of its message."""

    method: str
    request: Callable[[], Message]
    code: StatusCode
    words: tuple[str, ...]


def images_case(
    images: Callable[[], pb.Images | None], *words: str, code: StatusCode = INVALID
) -> list[Case]:
    return [
        Case("Score", lambda: pb.ScoreRequest(images=images()), code, words),
        Case("Explain", lambda: pb.ExplainRequest(images=images()), code, words),
        Case("Encode", lambda: pb.EncodeRequest(images=images()), code, words),
    ]


def tensor_case(make: Callable[[], tensor_pb2.Tensor], *words: str) -> list[Case]:
    return images_case(lambda: pb.Images(tensor=make()), *words)


def sample_case(*words: str, **fields: Any) -> list[Case]:
    return [Case("Sample", lambda: pb.SampleRequest(**{"n": 1} | fields), INVALID, words)]


def latents_case(make: Callable[[], tensor_pb2.Tensor | None], *words: str) -> list[Case]:
    return [Case("Decode", lambda: pb.DecodeRequest(latents=make()), INVALID, words)]


def model_case(code: StatusCode, *words: str, **spec: Any) -> list[Case]:
    model = pb.ModelSpec(**spec)
    images = pb.Images(tensor=tensor([1, 8, 8, 1]))
    return [
        Case("Score", lambda: pb.ScoreRequest(model=model, images=images), code, words),
        Case("Explain", lambda: pb.ExplainRequest(model=model, images=images), code, words),
        Case("Encode", lambda: pb.EncodeRequest(model=model, images=images), code, words),
        Case("Sample", lambda: pb.SampleRequest(model=model, n=1), code, words),
        Case("Decode", lambda: pb.DecodeRequest(model=model, latents=latent_tensor(0)), code, words),
        Case("GetModel", lambda: pb.GetModelRequest(model=model), code, words),
    ]


def behind_a_good_one(data: bytes) -> Callable[[], pb.Images]:
    """Images of two files, of which the second is this one."""
    return lambda: encoded(GOOD, data)


BAD_FILE = "images.encoded.data[1]: "
NOISE = np.random.default_rng(0).bytes(3 * 64 * 64)
JPEG, WEBP = (file_of(Image.frombytes("RGB", (64, 64), NOISE), form) for form in ("JPEG", "WEBP"))

CASES: dict[str, list[Case]] = {
    # No images.
    "no images": images_case(lambda: None, "images is empty"),
    "no source of images": images_case(pb.Images, "images is empty"),
    "no files": images_case(encoded, "images.encoded.data: 0 images", "1 to 256"),
    "no tensor": tensor_case(tensor_pb2.Tensor, "images.tensor.dtype is DATA_TYPE_UNSPECIFIED"),
    "a tensor of no images": tensor_case(lambda: tensor([0, 8, 8, 1]), "images.tensor.shape[0]: 0 images"),
    # Too many.
    "too many files": images_case(
        lambda: encoded(*[GOOD] * 257), "images.encoded.data: 257 images", "1 to 256"
    ),
    "too many empty files": images_case(
        lambda: encoded(*[b""] * 100_000),
        "images.encoded.data: ",
        "more than 1536 fields",
        "at most 256 images",
    ),
    "too many images": tensor_case(lambda: tensor([257, 8, 8, 1]), "images.tensor.shape[0]: 257 images"),
    # Files that are not pictures.
    "an empty file": images_case(
        behind_a_good_one(b""), BAD_FILE, "0 bytes are not a picture", "PNG, JPEG, WEBP"
    ),
    "a text": images_case(behind_a_good_one(b"not a picture"), BAD_FILE, "13 bytes are not a picture"),
    "random bytes": images_case(behind_a_good_one(NOISE), BAD_FILE, "12288 bytes are not a picture"),
    "a gif": images_case(
        behind_a_good_one(file_of(Image.new("L", (8, 8)), "GIF")), BAD_FILE, "not a picture"
    ),
    "a tiff": images_case(
        behind_a_good_one(file_of(Image.new("L", (8, 8)), "TIFF")), BAD_FILE, "not a picture"
    ),
    "half a png header": images_case(behind_a_good_one(GOOD[:20]), BAD_FILE, "not a picture"),
    "a truncated png": images_case(behind_a_good_one(GOOD[:-30]), BAD_FILE, "the picture is damaged"),
    "a truncated jpeg": images_case(
        behind_a_good_one(JPEG[: len(JPEG) // 2]), BAD_FILE, "the picture is damaged"
    ),
    "a truncated webp": images_case(behind_a_good_one(WEBP[: len(WEBP) // 2]), BAD_FILE),
    "a damaged png": images_case(
        behind_a_good_one(GOOD[:45] + b"\0\0\0\0" + GOOD[49:]), BAD_FILE, "the picture is damaged"
    ),
    # Pictures that are too large.
    "a claim of 2.5 gigapixels": images_case(
        behind_a_good_one(png_that_claims(50_000, 50_000)), BAD_FILE, "at most 64000000 are accepted"
    ),
    "a claim of 4 gigapixels in a row": images_case(
        behind_a_good_one(png_that_claims(2**31 - 1, 2)), BAD_FILE, "at most 64000000 are accepted"
    ),
    "a decompression bomb": images_case(
        lambda: encoded(GOOD, blank(9000, 9000)), BAD_FILE, "9000 x 9000 pixels", "at most 64000000"
    ),
    "a decompression bomb of three files": images_case(
        lambda: encoded(*[blank(5000, 5000)] * 3),
        "images.encoded.data[2]: ",
        "makes 75000000",
        "at most 64000000",
    ),
    # Tensors of another shape or type than the model's images.
    "the wrong height": tensor_case(
        lambda: tensor([1, 9, 8, 1]), "images.tensor.shape is [1, 9, 8, 1]", "[N, 8, 8, 1]"
    ),
    "the wrong width": tensor_case(
        lambda: tensor([1, 8, 7, 1]), "images.tensor.shape is [1, 8, 7, 1]", "[N, 8, 8, 1]"
    ),
    "the wrong channels": tensor_case(lambda: tensor([1, 8, 8, 3]), "images.tensor.shape is [1, 8, 8, 3]"),
    "channels first": tensor_case(lambda: tensor([1, 1, 8, 8]), "images.tensor.shape is [1, 1, 8, 8]"),
    "no batch": tensor_case(lambda: tensor([8, 8, 1]), "images.tensor.shape is [8, 8, 1]", "[N, 8, 8, 1]"),
    "too many dimensions": tensor_case(
        lambda: tensor([1, 1, 8, 8, 1]), "images.tensor.shape is [1, 1, 8, 8, 1]"
    ),
    "a thousand dimensions": tensor_case(
        lambda: tensor([1] * 1000), "images.tensor.shape is [1, 1, 1, 1, 1, 1, 1, 1]"
    ),
    "no shape": tensor_case(lambda: tensor([], b"\0"), "images.tensor.shape is []"),
    "a height of 0": tensor_case(lambda: tensor([1, 0, 8, 1]), "images.tensor.shape is [1, 0, 8, 1]"),
    "a negative number": tensor_case(lambda: tensor([-1, 8, 8, 1], b""), "images.tensor.shape[0]: -1 images"),
    "two negatives": tensor_case(
        lambda: tensor([-1, -8, 8, 1], bytes(64)), "images.tensor.shape is [-1, -8, 8, 1]"
    ),
    "the largest number": tensor_case(
        lambda: tensor([2**63 - 1, 8, 8, 1], b""), f"shape[0]: {2**63 - 1} images"
    ),
    "dimensions whose product overflows to 64": tensor_case(
        lambda: tensor([2**58 + 1, 8, 8, 1], bytes(64)), f"images.tensor.shape[0]: {2**58 + 1} images"
    ),
    "huge dimensions": tensor_case(
        lambda: tensor([2**62] * 4, b""), "images.tensor.shape is [4611686018427387904"
    ),
    "too little data": tensor_case(
        lambda: tensor([2, 8, 8, 1], bytes(127)), "images.tensor.data has 127 bytes", "[2, 8, 8, 1] takes 128"
    ),
    "too much data": tensor_case(
        lambda: tensor([1, 8, 8, 1], bytes(65)), "images.tensor.data has 65 bytes", "takes 64"
    ),
    "no data": tensor_case(lambda: tensor([1, 8, 8, 1], b""), "images.tensor.data has 0 bytes"),
    "floats": tensor_case(
        lambda: tensor([1, 8, 8, 1], dtype=FLOAT32),
        "images.tensor.dtype is DATA_TYPE_FLOAT32",
        "DATA_TYPE_UINT8",
    ),
    "no type": tensor_case(
        lambda: tensor([1, 8, 8, 1], dtype=0), "images.tensor.dtype is DATA_TYPE_UNSPECIFIED"
    ),
    "an unknown type": tensor_case(lambda: tensor([1, 8, 8, 1], dtype=77), "images.tensor.dtype is 77"),
    "a negative type": tensor_case(lambda: tensor([1, 8, 8, 1], dtype=-1), "images.tensor.dtype is -1"),
    # Samples.
    "no samples": sample_case("n is 0", "1 to 100000", n=0),
    "too many samples": sample_case("n is 100001", "1 to 100000", n=100_001),
    "the largest number of samples": sample_case("n is 4294967295", n=2**32 - 1),
    "a temperature of NaN": sample_case("temperature is nan", temperature=float("nan")),
    "an infinite temperature": sample_case("temperature is inf", temperature=float("inf")),
    "a temperature of minus infinity": sample_case("temperature is -inf", temperature=-float("inf")),
    "a negative temperature": sample_case("temperature is -0.5", "0 or more", temperature=-0.5),
    "an unknown format of samples": sample_case("format is 3", "IMAGE_FORMAT_RAW", format=3),
    "a negative format of samples": sample_case("format is -1", "IMAGE_FORMAT_PNG", format=-1),
    # Latents.
    "an unknown format of images": [
        Case(
            "Decode", lambda: pb.DecodeRequest(latents=latent_tensor(0), format=9), INVALID, ("format is 9",)
        )
    ],
    "no latents": latents_case(lambda: None, "latents.dtype is DATA_TYPE_UNSPECIFIED"),
    "latents of no images": latents_case(
        lambda: tensor([0, 64], dtype=FLOAT32), "latents.shape[0]: 0 images"
    ),
    "latents of bytes": latents_case(
        lambda: tensor([1, 64]), "latents.dtype is DATA_TYPE_UINT8", "DATA_TYPE_FLOAT32"
    ),
    "latents with a NaN": latents_case(
        lambda: latent_tensor(0, 1, float("nan")), "latents: row 2 is not finite"
    ),
    "latents with infinity": latents_case(
        lambda: latent_tensor(0, float("inf"), 1), "latents: row 1 is not finite"
    ),
    "latents with minus infinity": latents_case(
        lambda: latent_tensor(-float("inf")), "latents: row 0 is not finite"
    ),
    "latents that are too narrow": latents_case(
        lambda: tensor([1, 63], dtype=FLOAT32), "latents.shape is [1, 63]", "[N, 64]"
    ),
    "latents that are too wide": latents_case(
        lambda: tensor([1, 65], dtype=FLOAT32), "latents.shape is [1, 65]", "[N, 64]"
    ),
    "latents of images' shape": latents_case(
        lambda: tensor([1, 8, 8, 1], dtype=FLOAT32), "latents.shape is [1, 8, 8, 1]"
    ),
    "a single latent without batch": latents_case(
        lambda: tensor([64], dtype=FLOAT32), "latents.shape is [64]"
    ),
    "too many latents": latents_case(
        lambda: tensor([257, 64], dtype=FLOAT32), "latents.shape[0]: 257 images"
    ),
    "latents with too little data": latents_case(
        lambda: tensor([1, 64], bytes(64), FLOAT32), "latents.data has 64 bytes", "takes 256"
    ),
    "latents whose size overflows": latents_case(
        lambda: tensor([2**56 + 1, 64], bytes(256), FLOAT32), "latents.shape[0]: "
    ),
    # Models.
    "an unknown model": model_case(
        MISSING, "model.name 'nobody'", "served are digits version 1", name="nobody"
    ),
    "a model in another case": model_case(MISSING, "model.name 'Digits'", name="Digits"),
    "a path": model_case(MISSING, "model.name '../digits'", name="../digits"),
    "a very long name": model_case(
        MISSING, "model.name 'aaaaaaaa", "served are digits", name="a" * 1_000_000
    ),
    "a name beyond ASCII": model_case(MISSING, "model.name 'ζ\\n\\x00'", name="ζ\n\0"),
    "a long name of rare characters": model_case(MISSING, "model.name ", name="\U000e0001" * 10_000),
    "an unknown version": model_case(MISSING, "model.version 2 of 'digits'", "digits version 1", version=2),
    "the largest version": model_case(MISSING, f"model.version {2**64 - 1}", version=2**64 - 1),
}
FLAT = [pytest.param(case, id=f"{case.method}: {name}") for name, cases in CASES.items() for case in cases]


def outcome(stub: GlowServiceStub, method: str, request: Any) -> tuple[StatusCode, str]:
    try:
        answer = getattr(stub, method)(request)
        if method == "Sample":
            list(answer)
    except grpc.RpcError as error:
        return error.code(), error.details()
    return StatusCode.OK, ""


def answers_well(stub: GlowServiceStub) -> bool:
    """Whether an image is scored, and alike as a file and as a tensor."""
    sources = encoded(GOOD), pb.Images(tensor=tensor([1, 8, 8, 1], IMAGE.tobytes()))
    first, other = (stub.Score(pb.ScoreRequest(images=images)).scores[0] for images in sources)
    return first == other and first.finite


@pytest.mark.parametrize("case", FLAT)
def test_a_malformed_request_is_refused_and_the_next_request_is_answered(
    stub: GlowServiceStub, case: Case
) -> None:
    code, message = outcome(stub, case.method, case.request())
    assert code is case.code, message
    for words in case.words:
        assert words in message
    assert len(message) < 2000
    assert answers_well(stub)


def test_the_largest_and_smallest_allowed_requests_are_answered(stub: GlowServiceStub) -> None:
    for method, request in (
        ("Score", pb.ScoreRequest(images=pb.Images(tensor=tensor([256, 8, 8, 1])))),
        ("Score", pb.ScoreRequest(images=encoded(*[GOOD] * 256))),
        ("Encode", pb.EncodeRequest(images=pb.Images(tensor=tensor([256, 8, 8, 1])))),
        ("Decode", pb.DecodeRequest(latents=tensor([256, 64], dtype=FLOAT32))),
        ("Sample", pb.SampleRequest(n=1, temperature=0)),
        ("Sample", pb.SampleRequest(n=1, temperature=0, seed=2**64 - 1, format=pb.IMAGE_FORMAT_RAW)),
        ("GetModel", pb.GetModelRequest(model=pb.ModelSpec(name="digits", version=1))),
        ("ListModels", pb.ListModelsRequest()),
    ):
        assert outcome(stub, method, request) == (StatusCode.OK, ""), method


def test_malformed_requests_among_good_ones_do_not_change_their_answers(
    server: Server, channel: grpc.Channel, stub: GlowServiceStub, digits: UInt8Array
) -> None:
    """The whole table at once, between good calls. Health says SERVING all the time."""
    slow = ("bomb", "bytes", "empty files", "long name")  # these take long to send
    bad = [
        (case, case.request())
        for name, cases in CASES.items()
        for case in cases
        if not any(words in name for words in slow)
    ]
    groups = [digits[i : i + 7] for i in range(0, 140, 7)]
    requests = [
        pb.ScoreRequest(images=pb.Images(tensor=tensor(list(group.shape), group.tobytes())))
        for group in groups
    ]
    alone = [[score.log_likelihood for score in stub.Score(request).scores] for request in requests]
    health = health_pb2_grpc.HealthStub(channel)
    with ThreadPoolExecutor(32) as pool:
        refused = [pool.submit(outcome, stub, case.method, request) for case, request in bad]
        answered = [pool.submit(stub.Score, request) for _ in range(5) for request in requests]
        checks = [pool.submit(health.Check, health_pb2.HealthCheckRequest()) for _ in range(5)]
        for (case, _), future in zip(bad, refused, strict=True):
            assert future.result()[0] is case.code
        for i, future in enumerate(answered):
            together = [score.log_likelihood for score in future.result().scores]
            np.testing.assert_allclose(together, alone[i % len(alone)], rtol=1e-5)
        assert {check.result().status for check in checks} == {health_pb2.HealthCheckResponse.SERVING}
    wait_for(lambda: in_flight(server) == 0)
