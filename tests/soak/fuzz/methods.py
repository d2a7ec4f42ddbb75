"""Every method of every service, except Watch of health, with requests that it answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from glowserve.images import UInt8Array, encode_png
from glowserve.messages import float_tensor, images_message
from glowserve.oip import grpc_service_pb2 as oip
from glowserve.v1 import glow_service_pb2 as pb

GLOW, INFERENCE = "glowserve.v1.GlowService", "inference.GRPCInferenceService"
HEALTH, REFLECTION = "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"

_RESPONSE_STREAMS = ("Sample",)
# On the wire a call with one response is like a stream with one.
_REQUEST_STREAMS = ("ScoreStream", "ScoreSet", "ModelStreamInfer", "ServerReflectionInfo")
_ADMIN = ("LoadModel", "UnloadModel", "RepositoryModelLoad", "RepositoryModelUnload")


@dataclass(frozen=True)
class Method:
    """A method of a service."""

    path: str
    """/SERVICE/METHOD"""
    response: type[Message]
    valid: tuple[bytes, ...]
    """Requests that it answers."""
    weight: int = 1
    """How often it is called, in proportion to the weights of the others."""

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]

    @property
    def is_admin(self) -> bool:
        """Whether the service permits it only with `--admin on`."""
        return self.name in _ADMIN

    @property
    def streams_responses(self) -> bool:
        return self.name in _RESPONSE_STREAMS or self.streams_requests

    @property
    def streams_requests(self) -> bool:
        return self.name in _REQUEST_STREAMS


def all_methods(images: UInt8Array) -> list[Method]:
    """Every method, with valid requests about images [N, 8, 8, 1]."""
    return [
        *_glow_methods(images),
        *_inference_methods(images),
        _method(
            HEALTH, "Check", [health_pb2.HealthCheckRequest(service="digits")], health_pb2.HealthCheckResponse
        ),
        _reflection_method(),
    ]


def _method(
    service: str, name: str, requests: Sequence[Any], response: type[Message], weight: int = 1
) -> Method:
    valid = tuple(request.SerializeToString() for request in requests)
    return Method(f"/{service}/{name}", response, valid, weight)


def _glow_methods(images: UInt8Array) -> list[Method]:
    table: dict[str, tuple[int, list[Any]]] = {
        **_batched_requests(images),
        "GetModel": (1, [pb.GetModelRequest(model=pb.ModelSpec(name="digits", version=1))]),
        "ListModels": (1, [pb.ListModelsRequest()]),
        "LoadModel": (1, [pb.LoadModelRequest(name="digits")]),
        "UnloadModel": (1, [pb.UnloadModelRequest(name="digits")]),
    }
    responses = {name: f"{name}Response" for name in table} | {"ScoreStream": "ScoreResponse"}
    return [
        _method(GLOW, name, requests, getattr(pb, responses[name]), weight)
        for name, (weight, requests) in table.items()
    ]


def _batched_requests(images: UInt8Array) -> dict[str, tuple[int, list[Any]]]:
    """Weights and requests of the methods of GlowService that run a model, by name."""

    def raw(n: int) -> pb.Images:
        return images_message(images[:n])

    def files(n: int) -> pb.Images:
        return images_message([encode_png(image) for image in images[:n]])

    latents = np.random.default_rng(0).normal(size=(3, 64)).astype(np.float32)
    digits = pb.ModelSpec(name="digits", version=1)
    score = [
        pb.ScoreRequest(model=digits, images=raw(1), seed=3),
        pb.ScoreRequest(images=raw(4)),
        pb.ScoreRequest(model=digits, images=files(2), seed=2**64 - 1),
    ]
    explain = [pb.ExplainRequest(model=digits, images=raw(2)), pb.ExplainRequest(images=files(1))]
    encode = [pb.EncodeRequest(model=digits, images=raw(2)), pb.EncodeRequest(images=files(1))]
    decode = [
        pb.DecodeRequest(model=digits, latents=float_tensor(latents[:1])),
        pb.DecodeRequest(latents=float_tensor(latents), format=pb.IMAGE_FORMAT_RAW),
    ]
    sample = [
        pb.SampleRequest(model=digits, n=3, temperature=0.7, seed=1),
        pb.SampleRequest(n=40, temperature=0.5, seed=2, format=pb.IMAGE_FORMAT_RAW),
    ]
    interpolate = [
        pb.InterpolateRequest(model=digits, images=raw(2), steps=5),
        pb.InterpolateRequest(images=files(2), steps=2, format=pb.IMAGE_FORMAT_RAW),
    ]
    manipulate = [
        pb.ManipulateRequest(model=digits, images=raw(1), attributes=["bright"], strengths=[-1, 0, 1]),
        pb.ManipulateRequest(
            latents=float_tensor(latents[:1]), attributes=["bright", "top"], strengths=[0.5]
        ),
    ]
    stream = [pb.ScoreRequest(images=raw(1)), pb.ScoreRequest(images=files(2))]
    image_set = [pb.ScoreSetRequest(model=digits, images=raw(2)), pb.ScoreSetRequest(images=files(3))]
    return {
        "Score": (6, score),
        "Explain": (3, explain),
        "Encode": (4, encode),
        "Decode": (4, decode),
        "Sample": (4, sample),
        "ScoreStream": (3, stream),
        "ScoreSet": (2, image_set),
        "Interpolate": (3, interpolate),
        "Manipulate": (3, manipulate),
    }


def _inference_methods(images: UInt8Array) -> list[Method]:
    infer = _infer_requests(images)
    digits = {"name": "digits", "version": "1"}
    table: dict[str, tuple[int, list[Any]]] = {
        "ModelInfer": (6, infer),
        "ModelStreamInfer": (3, infer),
        "ServerLive": (1, [oip.ServerLiveRequest()]),
        "ServerReady": (1, [oip.ServerReadyRequest()]),
        "ModelReady": (1, [oip.ModelReadyRequest(**digits)]),
        "ServerMetadata": (1, [oip.ServerMetadataRequest()]),
        "ModelMetadata": (1, [oip.ModelMetadataRequest(**digits)]),
        "ModelConfig": (1, [oip.ModelConfigRequest(**digits)]),
        "ModelStatistics": (1, [oip.ModelStatisticsRequest(**digits)]),
        "RepositoryIndex": (1, [oip.RepositoryIndexRequest(ready=True)]),
        "RepositoryModelLoad": (1, [oip.RepositoryModelLoadRequest(model_name="digits")]),
        "RepositoryModelUnload": (1, [oip.RepositoryModelUnloadRequest(model_name="digits")]),
    }
    return [
        _method(INFERENCE, name, requests, getattr(oip, f"{name}Response"), weight)
        for name, (weight, requests) in table.items()
    ]


def _infer_requests(images: UInt8Array) -> list[Any]:
    """ModelInfer with raw contents and with fields, of both views, with a parameter and a chosen output."""
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


def _reflection_method() -> Method:
    requests = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol=GLOW),
    ]
    return _method(REFLECTION, "ServerReflectionInfo", requests, reflection_pb2.ServerReflectionResponse)
