"""Bytes that are no message, sent to a real server."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from glowserve_service.front.front import SERVICE_NAME

from glowserve.v1 import glow_service_pb2 as pb
from glowserve.v1.glow_service_pb2_grpc import GlowServiceStub
from tests.service.log_records import records_of

NO_MESSAGES = [b"\xff", b"\x0a\x7f", bytes(range(250, 256)) * 100, b"\x0a\x03\x0a\x01\xff"]
"""The last is a model's name that is not UTF-8."""


@pytest.mark.parametrize("data", NO_MESSAGES, ids=["tag", "length", "noise", "name"])
@pytest.mark.parametrize(
    "method", ["Score", "Explain", "Sample", "Encode", "Decode", "Interpolate", "Manipulate", "GetModel"]
)
def test_bytes_that_are_no_message_are_an_invalid_request(
    channel: grpc.Channel, stub: GlowServiceStub, method: str, data: bytes
) -> None:
    kind = channel.unary_stream if method == "Sample" else channel.unary_unary
    with pytest.raises(grpc.RpcError) as caught:
        list(kind(f"/{SERVICE_NAME}/{method}")(data))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert f"the message is not one that {method} takes" in caught.value.details()
    assert stub.ListModels(pb.ListModelsRequest()).models


def test_a_message_without_fields_takes_unknown_ones(channel: grpc.Channel, stub: GlowServiceStub) -> None:
    """So protobuf reads a message of a later version of the contract."""
    answer = channel.unary_unary(f"/{SERVICE_NAME}/ListModels")(NO_MESSAGES[-1])
    assert answer == stub.ListModels(pb.ListModelsRequest()).SerializeToString()
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(f"/{SERVICE_NAME}/ListModels")(b"\xff")
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize(
    "method",
    [
        "grpc.health.v1.Health/Check",
        "grpc.health.v1.Health/Watch",
        "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    ],
)
def test_bytes_that_are_no_message_are_refused_by_the_other_services_without_a_log_line(
    channel: grpc.Channel, method: str, caplog: pytest.LogCaptureFixture
) -> None:
    kinds: Any = {"Check": channel.unary_unary, "Watch": channel.unary_stream}
    name = method.rpartition("/")[2]
    call = kinds.get(name, channel.stream_stream)(f"/{method}")
    with pytest.raises(grpc.RpcError) as caught:
        list(call(b"\xff" if name in kinds else iter([b"\xff"]), timeout=60))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert f"the message is not one that {name} takes" in caught.value.details()
    assert not records_of(caplog) + records_of(caplog, "grpc")


def test_a_method_that_does_not_exist_is_unimplemented(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(f"/{SERVICE_NAME}/Nothing")(b"")
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
