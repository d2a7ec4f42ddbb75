"""Messages that are nearly good: every method's, with bits, bytes, pieces and lengths changed.

A case is a function of a seed and its number alone, so that those two are enough to see it again.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from glowserve.images import UInt8Array, encode_png
from glowserve.oip import grpc_service_pb2 as oip
from glowserve.v1 import glow_service_pb2 as pb
from glowserve.v1 import tensor_pb2

GLOW, INFERENCE = "glowserve.v1.GlowService", "inference.GRPCInferenceService"
HEALTH, REFLECTION = "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"

# What protobuf, sizes and shapes break at.
_BYTES = (0x00, 0x01, 0x7F, 0x80, 0xFE, 0xFF)
_LENGTHS = (0, 1, 127, 128, 255, 2**16, 2**31 - 1, 2**32 - 1, 2**63 - 1, 2**64 - 1)


@dataclass(frozen=True)
class Method:
    """A method, and requests that it answers."""

    path: str
    response: type[Message]
    good: tuple[bytes, ...]
    weight: int = 1
    """How often it is called, beside the others."""
    admin: bool = False
    """Whether the service does not allow it."""
    kind: str = "unary"
    """Or "stream": of answers; or "both"."""

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]


@dataclass(frozen=True)
class Case:
    """What is sent where."""

    number: int
    method: Method
    path: str
    """The method's, unless it is one that is not there."""
    messages: tuple[bytes, ...]
    """One, except where requests are a stream."""


def methods(images: UInt8Array) -> list[Method]:
    """Every method of every service, but a watch, with good requests about images [N, 8, 8, 1]."""

    def raw(n: int) -> pb.Images:
        return pb.Images(
            tensor=tensor_pb2.Tensor(dtype="DATA_TYPE_UINT8", shape=[n, 8, 8, 1], data=images[:n].tobytes())
        )

    def files(n: int) -> pb.Images:
        return pb.Images(encoded=pb.EncodedImages(data=map(encode_png, images[:n])))

    def latents(n: int) -> tensor_pb2.Tensor:
        rows = np.random.default_rng(0).normal(size=(n, 64)).astype("<f4")
        return tensor_pb2.Tensor(dtype="DATA_TYPE_FLOAT32", shape=[n, 64], data=rows.tobytes())

    digits = pb.ModelSpec(name="digits", version=1)
    glow = [
        ("Score", pb.ScoreResponse, 6, [
            pb.ScoreRequest(model=digits, images=raw(1), seed=3),
            pb.ScoreRequest(images=raw(4)),
            pb.ScoreRequest(model=digits, images=files(2), seed=2**64 - 1),
        ]),
        ("Encode", pb.EncodeResponse, 4, [
            pb.EncodeRequest(model=digits, images=raw(2)),
            pb.EncodeRequest(images=files(1)),
        ]),
        ("Decode", pb.DecodeResponse, 4, [
            pb.DecodeRequest(model=digits, latents=latents(1)),
            pb.DecodeRequest(latents=latents(3), format=pb.IMAGE_FORMAT_RAW),
        ]),
        ("Sample", pb.SampleResponse, 4, [
            pb.SampleRequest(model=digits, n=3, temperature=0.7, seed=1),
            pb.SampleRequest(n=40, temperature=0.5, seed=2, format=pb.IMAGE_FORMAT_RAW),
        ]),
        ("ScoreStream", pb.ScoreResponse, 3, [pb.ScoreRequest(images=raw(1)), pb.ScoreRequest(images=files(2))]),
        ("Interpolate", pb.InterpolateResponse, 3, [
            pb.InterpolateRequest(model=digits, images=raw(2), steps=5),
            pb.InterpolateRequest(images=files(2), steps=2, format=pb.IMAGE_FORMAT_RAW),
        ]),
        ("GetModel", pb.GetModelResponse, 1, [pb.GetModelRequest(model=digits)]),
        ("ListModels", pb.ListModelsResponse, 1, [pb.ListModelsRequest()]),
        ("LoadModel", pb.LoadModelResponse, 1, [pb.LoadModelRequest(name="digits")]),
        ("UnloadModel", pb.UnloadModelResponse, 1, [pb.UnloadModelRequest(name="digits")]),
    ]  # fmt: skip
    infer = infer_requests(images)
    view = {"name": "digits", "version": "1"}
    inference = [
        ("ModelInfer", oip.ModelInferResponse, 6, infer),
        ("ModelStreamInfer", oip.ModelStreamInferResponse, 3, infer),
        ("ServerLive", oip.ServerLiveResponse, 1, [oip.ServerLiveRequest()]),
        ("ServerReady", oip.ServerReadyResponse, 1, [oip.ServerReadyRequest()]),
        ("ModelReady", oip.ModelReadyResponse, 1, [oip.ModelReadyRequest(**view)]),
        ("ServerMetadata", oip.ServerMetadataResponse, 1, [oip.ServerMetadataRequest()]),
        ("ModelMetadata", oip.ModelMetadataResponse, 1, [oip.ModelMetadataRequest(**view)]),
        ("ModelConfig", oip.ModelConfigResponse, 1, [oip.ModelConfigRequest(**view)]),
        ("ModelStatistics", oip.ModelStatisticsResponse, 1, [oip.ModelStatisticsRequest(**view)]),
        ("RepositoryIndex", oip.RepositoryIndexResponse, 1, [oip.RepositoryIndexRequest(ready=True)]),
        ("RepositoryModelLoad", oip.RepositoryModelLoadResponse, 1, [
            oip.RepositoryModelLoadRequest(model_name="digits"),
        ]),
        ("RepositoryModelUnload", oip.RepositoryModelUnloadResponse, 1, [
            oip.RepositoryModelUnloadRequest(model_name="digits"),
        ]),
    ]  # fmt: skip
    check = health_pb2.HealthCheckRequest(service="digits")
    health = [("Check", health_pb2.HealthCheckResponse, 1, [check])]
    query = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol=GLOW),
    ]
    reflection = [("ServerReflectionInfo", reflection_pb2.ServerReflectionResponse, 1, query)]
    both = ("ScoreStream", "ModelStreamInfer", "ServerReflectionInfo")
    kinds = {"Sample": "stream"} | dict.fromkeys(both, "both")
    return [
        Method(
            f"/{service}/{name}",
            response,
            tuple(request.SerializeToString() for request in requests),
            weight,
            admin=name.endswith(("LoadModel", "UnloadModel", "ModelLoad", "ModelUnload")),
            kind=kinds.get(name, "unary"),
        )
        for service, table in (
            (GLOW, glow),
            (INFERENCE, inference),
            (HEALTH, health),
            (REFLECTION, reflection),
        )
        for name, response, weight, requests in table
    ]


def infer_requests(images: UInt8Array) -> list[Any]:
    """Good requests of ModelInfer: raw and in fields, of both views, with a parameter and a chosen output."""
    image = {"name": "image", "datatype": "UINT8", "shape": [2, 8, 8, 1]}
    rows = [
        {"name": "seed", "datatype": "UINT64", "shape": [2, 1], "contents": {"uint64_contents": [7, 8]}},
        {"name": "temperature", "datatype": "FP32", "shape": [2, 1], "contents": {"fp32_contents": [0.5, 0]}},
    ]
    values = images[:2].reshape(-1).tolist()
    return [
        oip.ModelInferRequest(
            model_name="digits", id="a", inputs=[image], raw_input_contents=[images[:2].tobytes()]
        ),
        oip.ModelInferRequest(
            model_name="digits",
            model_version="1",
            parameters={"seed": {"int64_param": 5}},
            inputs=[image | {"contents": {"uint_contents": values}}],
            outputs=[{"name": "percentile"}],
        ),
        oip.ModelInferRequest(model_name="digits.sample", inputs=rows),
    ]


def case(seed: int, number: int, table: Sequence[Method]) -> Case:
    """One of endlessly many: a good request of some method, changed once to four times, for it or for another."""
    rng = random.Random(f"{seed}/bytes/{number}")
    method = rng.choices(table, [method.weight for method in table])[0]
    others = [data for each in table for data in each.good]
    source = rng.choice(table) if rng.random() < 0.1 else method
    count = rng.randint(1, 4) if method.kind == "both" else 1
    messages = tuple(mutated(rng, rng.choice(source.good), others) for _ in range(count))
    path = method.path + rng.choice("xX0/") if rng.random() < 0.01 else method.path
    return Case(number, method, path, messages)


def mutated(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Bytes, changed in 1 to 4 ways, mostly in one: more are seldom a message at all."""
    for _ in range(rng.choice((1, 1, 1, 1, 1, 1, 2, 2, 3, 4))):
        data = rng.choice(_WAYS)(rng, data, others)
    return data


def _flip(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    changed = bytearray(data or b"\0")
    changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _put(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    changed = bytearray(data or b"\0")
    changed[rng.randrange(len(changed))] = rng.choice((*_BYTES, rng.randrange(256)))
    return bytes(changed)


def _cut_off(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    return data[: rng.randint(0, len(data))]


def _cut_out(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    first = rng.randint(0, len(data))
    return data[:first] + data[first + rng.randint(0, 16) :]


def _insert(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    at = rng.randint(0, len(data))
    return data[:at] + rng.randbytes(rng.randint(1, 16)) + data[at:]


def _repeat(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    first = rng.randint(0, len(data))
    last = rng.randint(first, min(len(data), first + 200))
    return data[:last] + data[first:last] * rng.choice((1, 2, 50)) + data[last:]


def _splice(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    other = rng.choice(others)
    return data[: rng.randint(0, len(data))] + other[rng.randint(0, len(other)) :]


def _change_length(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Another length in front of a field's bytes, which stay as they are."""
    fields = list(_length_fields(data, 0, len(data)))
    if not fields:
        return _put(rng, data, others)
    first, last, length = rng.choice(fields)
    new = rng.choice((length - 1, length + 1, length // 2, *_LENGTHS))
    return data[:first] + _varint(max(new, 0)) + data[last:]


_WAYS = (_flip, _put, _put, _cut_off, _cut_out, _insert, _repeat, _splice, _change_length, _change_length)


def _length_fields(data: bytes, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Where lengths stand in a message: first byte, the one after the last, and the length; nested ones, too."""
    while at < end:
        tag, at = _read_varint(data, at, end)
        if at < 0 or not 1 <= tag >> 3 <= 32:
            return
        if tag & 7 == 0:
            _, at = _read_varint(data, at, end)
        elif tag & 7 in (1, 5):
            at += 8 if tag & 7 == 1 else 4
        elif tag & 7 == 2:
            first = at
            length, at = _read_varint(data, at, end)
            if at < 0 or at + length > end:
                return
            yield first, at, length
            yield from _length_fields(data, at, at + length)
            at += length
        else:
            return
        if at < 0:
            return


def _read_varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    """A number, and where it ends; -1 if it does not."""
    value = shift = 0
    while at < end and shift < 64:
        value |= (data[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if not data[at - 1] & 0x80:
            return value, at
    return 0, -1


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*out, value))
