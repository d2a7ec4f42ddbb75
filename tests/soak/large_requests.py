"""Callers that send more than a request can mean: many empty fields, many values, many long messages at once.

They run in processes of their own, without pytest.
"""

from __future__ import annotations

import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Event

import grpc

_MIB = 2**20
_OPTIONS = [("grpc.max_send_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
_GLOW, _OIP = "/glowserve.v1.GlowService", "/inference.GRPCInferenceService"
_HEALTH, _REFLECTION = "/grpc.health.v1.Health", "/grpc.reflection.v1alpha.ServerReflection"


def varint(number: int) -> bytes:
    """A number as it is on the wire."""
    data = b""
    while number > 127:
        data, number = data + bytes([number & 127 | 128]), number >> 7
    return data + bytes([number])


def field(number: int, content: bytes) -> bytes:
    """A field of bytes, or a submessage."""
    return varint(number << 3 | 2) + varint(len(content)) + content


@dataclass(frozen=True)
class Form:
    """A long request: a part that is repeated, and the fields that it lies in."""

    path: str
    """Of the method."""
    part: bytes
    inside: tuple[int, ...] = ()
    """The numbers of the fields, the innermost first."""
    before: bytes = b""

    def request(self, mebibytes: float) -> bytes:
        """About so long."""
        content = self.part * (int(mebibytes * _MIB) // len(self.part))
        for number in self.inside:
            content = field(number, content)
        return self.before + content


_NAME = field(1, b"digits")
FORMS = {
    "ModelInfer: empty inputs": Form(f"{_OIP}/ModelInfer", b"\x2a\x00", before=_NAME),
    "ModelInfer: empty outputs": Form(f"{_OIP}/ModelInfer", b"\x32\x00", before=_NAME),
    "ModelInfer: empty parameters": Form(f"{_OIP}/ModelInfer", b"\x22\x00", before=_NAME),
    "ModelInfer: empty raw contents": Form(f"{_OIP}/ModelInfer", b"\x3a\x00", before=_NAME),
    "ModelInfer: contents again and again": Form(f"{_OIP}/ModelInfer", b"\x2a\x00", (5,), _NAME),
    "ModelInfer: packed int64_contents": Form(f"{_OIP}/ModelInfer", b"\x01", (3, 5, 5), _NAME),
    "ModelInfer: bytes_contents": Form(f"{_OIP}/ModelInfer", b"\x42\x00", (5, 5), _NAME),
    "ModelInfer: an input's shape": Form(f"{_OIP}/ModelInfer", b"\x01", (3, 5), _NAME),
    "ModelStreamInfer: empty inputs": Form(f"{_OIP}/ModelStreamInfer", b"\x2a\x00", before=_NAME),
    "Score: shape": Form(f"{_GLOW}/Score", b"\x01", (2, 2, 2)),
    "Score: shape, not packed": Form(f"{_GLOW}/Score", b"\x10\x01", (2, 2)),
    "Score: empty pictures": Form(f"{_GLOW}/Score", b"\x0a\x00", (1, 2)),
    "Score: images again and again": Form(f"{_GLOW}/Score", b"\x12\x00"),
    "Score: unknown fields": Form(f"{_GLOW}/Score", b"\xa0\x06\x00"),
    "Score: unknown groups": Form(f"{_GLOW}/Score", b"\xa3\x06\xa4\x06"),
    "Score: long zeros": Form(f"{_GLOW}/Score", b"\x98\x80\x80\x80\x00\x80\x80\x80\x80\x00"),
    "ScoreStream: empty pictures": Form(f"{_GLOW}/ScoreStream", b"\x0a\x00", (1, 2)),
    "ScoreSet: empty pictures": Form(f"{_GLOW}/ScoreSet", b"\x0a\x00", (1, 2)),
    "Manipulate: empty attributes": Form(f"{_GLOW}/Manipulate", b"\x22\x00"),
    "Manipulate: packed strengths": Form(f"{_GLOW}/Manipulate", b"\x00", (5,)),
    "ListModels: unknown fields": Form(f"{_GLOW}/ListModels", b"\x08\x00"),
    "Check: unknown fields": Form(f"{_HEALTH}/Check", b"\x10\x00"),
    "Check: a long name": Form(f"{_HEALTH}/Check", b"x", (1,)),
    "Watch: unknown fields": Form(f"{_HEALTH}/Watch", b"\x10\x00"),
    "Reflection: unknown fields": Form(f"{_REFLECTION}/ServerReflectionInfo", b"\x50\x00"),
}


def call_with(
    target: str, path: str, request: bytes, calls: int, timeout: float, outcomes: Queue[Counter[str]]
) -> None:
    """Makes calls at once, with a connection each, and puts their codes into a queue."""

    def call(_: int) -> str:
        # A stream of requests, whatever the method is: on the wire they are alike.
        with grpc.insecure_channel(target, _OPTIONS) as channel:
            grpc.channel_ready_future(channel).result(60)
            try:
                for _answer in channel.stream_stream(path)(iter([request]), timeout=timeout):
                    pass
            except grpc.RpcError as error:
                return error.code().name
        return "OK"

    with ThreadPoolExecutor(calls) as pool:
        outcomes.put(Counter(pool.map(call, range(calls))))


def call_again_and_again(target: str, seconds: Queue[float], stop: Event) -> None:
    """A good caller: scores one image, and asks for the health, until it is stopped. Puts the longest time of a pair of
    them into a queue."""
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    from glowserve.v1 import glow_service_pb2 as pb
    from glowserve.v1.glow_service_pb2_grpc import GlowServiceStub

    tensor = {"dtype": 1, "shape": [1, 8, 8, 1], "data": bytes(64)}
    request, longest = pb.ScoreRequest(images={"tensor": tensor}), 0.0
    with grpc.insecure_channel(target, _OPTIONS) as channel:
        glow, health = GlowServiceStub(channel), health_pb2_grpc.HealthStub(channel)
        while not stop.is_set():
            began = time.monotonic()
            glow.Score(request, timeout=60)
            health.Check(health_pb2.HealthCheckRequest(), timeout=60)
            longest = max(longest, time.monotonic() - began)
    seconds.put(longest)
