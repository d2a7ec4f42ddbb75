"""What an error tells a program: its reason, the field that is wrong, and when to try again."""

from __future__ import annotations

import asyncio
import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from glowserve_service import errors
from glowserve_service.errors import QueueFullError
from glowserve_service.front import status
from glowserve_service.server import Server
from google.protobuf.message import Message
from google.rpc import error_details_pb2
from grpc import StatusCode
from grpc_status import rpc_status

import glowserve
from glowserve.client.async_client import AsyncClient
from glowserve.images import UInt8Array
from glowserve.oip import grpc_service_pb2 as oip
from glowserve.oip.grpc_service_pb2_grpc import GRPCInferenceServiceStub
from glowserve.runtime.errors import DeviceError, GlowserveError, InvalidRequestError, NotFiniteError
from glowserve.v1 import glow_service_pb2 as pb
from glowserve.v1 import tensor_pb2
from glowserve.v1.glow_service_pb2_grpc import GlowServiceStub
from tests.service.wire import raw, wait_for

TABLE = Path(__file__).parents[2] / "docs" / "errors.md"
INVALID = StatusCode.INVALID_ARGUMENT
DETAILS = {
    "ErrorInfo": error_details_pb2.ErrorInfo,
    "BadRequest": error_details_pb2.BadRequest,
    "RetryInfo": error_details_pb2.RetryInfo,
}
# A service that cannot start has no callers.
START_UP = {DeviceError, errors.PortError, errors.TracingError}


def details_of(error: grpc.RpcError) -> dict[str, Message]:
    """The details of a status, by kind; from_call checks that code and message are the status's own."""
    found = {}
    for packed in rpc_status.from_call(error).details:
        name = packed.type_url.removeprefix("type.googleapis.com/google.rpc.")
        found[name] = DETAILS[name]()
        assert packed.Unpack(found[name])
    return found


def refused(call: Callable[[], Any]) -> grpc.RpcError:
    def answer() -> Any:
        found = call()
        return list(found) if isinstance(found, Iterator) else found

    with pytest.raises(grpc.RpcError) as caught:
        answer()
    return caught.value


@pytest.fixture
def channel(server: Server) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        yield channel


@pytest.fixture
def stub(channel: grpc.Channel) -> GlowServiceStub:
    return GlowServiceStub(channel)


def test_every_error_that_a_caller_can_see_has_a_status() -> None:
    found = {
        kind
        for _, kind in inspect.getmembers(errors, inspect.isclass)
        if issubclass(kind, GlowserveError) and kind is not GlowserveError
    }
    assert found - START_UP == set(status.STATUSES)


def test_the_table_in_the_docs_is_what_the_service_answers() -> None:
    lines = re.findall(r"^\| `([A-Z_]+)` \| `([A-Z_]+)` \| .+? \| (.+?) \| .+ \|$", TABLE.read_text(), re.M)
    written = [(code, reason, set(re.findall(r"`(\w+)`", details))) for code, reason, details in lines]

    def example(kind: type[GlowserveError]) -> GlowserveError:
        if kind is InvalidRequestError:
            return InvalidRequestError("n is 0", "n")
        return NotFiniteError("no", 1) if kind is NotFiniteError else kind("no")

    known = []
    for error in [*map(example, status.STATUSES), ZeroDivisionError("secret")]:
        (_, data), *others = status.trailing_metadata(error, "no")
        assert not others
        kinds = {
            packed.type_url.rpartition(".")[2]
            for packed in rpc_status.status_pb2.Status.FromString(data).details
        }
        assert b"secret" not in data
        known.append((status.status_of(error).name, status.reason_of(error), kinds - {"ErrorInfo"}))
    assert written == known
    reasons = [reason for _, reason, _ in written]
    assert len(set(reasons)) == len(reasons)


LATENTS = tensor_pb2.Tensor(
    dtype="DATA_TYPE_FLOAT32", shape=[2, 64], data=np.full((2, 64), np.nan, "<f4").tobytes()
)
SPEC = pb.ModelSpec(name="digits")
FLOATS = tensor_pb2.Tensor(dtype="DATA_TYPE_FLOAT32", shape=[1, 8, 8, 1], data=bytes(256))
BYTES = tensor_pb2.Tensor(dtype="DATA_TYPE_UINT8", shape=[1, 8, 8, 1], data=bytes(63))
WIDE = tensor_pb2.Tensor(dtype="DATA_TYPE_UINT8", shape=[1, 8, 9, 1], data=bytes(72))
NONE = tensor_pb2.Tensor(dtype="DATA_TYPE_UINT8", shape=[0, 8, 8, 1])


@pytest.mark.parametrize(
    ("method", "request_", "field"),
    [
        ("Score", pb.ScoreRequest(), "images"),
        ("Score", pb.ScoreRequest(images=pb.Images(encoded={})), "images.encoded.data"),
        ("Score", pb.ScoreRequest(images=pb.Images(encoded={"data": [b"?"]})), "images.encoded.data[0]"),
        ("Score", pb.ScoreRequest(images=pb.Images(tensor=FLOATS)), "images.tensor.dtype"),
        ("Encode", pb.EncodeRequest(images=pb.Images(tensor=WIDE)), "images.tensor.shape"),
        ("Encode", pb.EncodeRequest(images=pb.Images(tensor=NONE)), "images.tensor.shape[0]"),
        ("Encode", pb.EncodeRequest(images=pb.Images(tensor=BYTES)), "images.tensor.data"),
        ("Decode", pb.DecodeRequest(), "latents.dtype"),
        ("Decode", pb.DecodeRequest(latents=LATENTS), "latents.data"),
        ("Decode", pb.DecodeRequest(format=7), "format"),  # type: ignore[arg-type]
        ("Interpolate", pb.InterpolateRequest(steps=2), "images"),
        ("Interpolate", pb.InterpolateRequest(images=pb.Images(tensor=WIDE), steps=1), "steps"),
        (
            "Interpolate",
            pb.InterpolateRequest(images=pb.Images(tensor=WIDE), steps=2),
            "images.tensor.shape[0]",
        ),
        (
            "Interpolate",
            pb.InterpolateRequest(images=pb.Images(encoded={"data": [b"?"] * 3}), steps=2),
            "images.encoded.data",
        ),
        (
            "Interpolate",
            pb.InterpolateRequest(images=pb.Images(encoded={"data": [b"?"] * 2}), steps=2),
            "images.encoded.data[0]",
        ),
        ("Interpolate", pb.InterpolateRequest(format=7, steps=2), "format"),  # type: ignore[arg-type]
        ("Sample", pb.SampleRequest(n=0), "n"),
        ("Sample", pb.SampleRequest(n=1, temperature=-1), "temperature"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_bad_request_names_the_field(
    stub: GlowServiceStub, method: str, request_: Message, field: str
) -> None:
    error = refused(lambda: getattr(stub, method)(request_))
    assert error.code() is INVALID
    found = details_of(error)
    assert found.keys() == {"ErrorInfo", "BadRequest"}
    assert found["ErrorInfo"] == error_details_pb2.ErrorInfo(reason="INVALID_REQUEST", domain="glowserve")
    (violation,) = found["BadRequest"].field_violations
    assert (violation.field, violation.description) == (field, error.details())


def infer_request(**changes: Any) -> oip.ModelInferRequest:
    image = {"name": "image", "datatype": "UINT8", "shape": [1, 8, 8, 1]} | changes.pop("image", {})
    request = {"model_name": "digits", "inputs": [image], "raw_input_contents": [bytes(64)]}
    return oip.ModelInferRequest(**request | changes)


def sampling(*names: str, temperature: float = 1.0) -> oip.ModelInferRequest:
    """Rows of the sampler, its inputs in some order."""
    contents = {
        "seed": oip.InferTensorContents(uint64_contents=[1]),
        "temperature": oip.InferTensorContents(fp32_contents=[temperature]),
    }
    kinds = {"seed": "UINT64", "temperature": "FP32"}
    tensors = [
        oip.ModelInferRequest.InferInputTensor(
            name=name, datatype=kinds[name], shape=[1, 1], contents=contents[name]
        )
        for name in names
    ]
    return oip.ModelInferRequest(model_name="digits.sample", inputs=tensors)


UINTS = {"contents": {"uint_contents": [256] * 64}}


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (infer_request(model_version="x"), "model_version"),
        (infer_request(inputs=[]), "inputs"),
        (infer_request(raw_input_contents=[b"", b""]), "raw_input_contents"),
        (infer_request(raw_input_contents=[b"?"]), "raw_input_contents[0]"),
        (infer_request(image={"datatype": "FP32"}), "inputs[0].datatype"),
        (infer_request(image={"shape": [1, 8]}), "inputs[0].shape"),
        (infer_request(image={"shape": [0, 8, 8, 1]}), "inputs[0].shape"),
        (infer_request(image={"contents": {}}), "inputs[0].contents"),
        (infer_request(image={"contents": {}}, raw_input_contents=[]), "inputs[0].contents.uint_contents"),
        (infer_request(image=UINTS, raw_input_contents=[]), "inputs[0].contents.uint_contents"),
        (infer_request(outputs=[{"name": "percentile"}, {"name": "?"}]), "outputs[1].name"),
        (infer_request(parameters={"seed": {"int64_param": -1}}), "parameters.seed"),
        (infer_request(parameters={"seed": {"bool_param": True}}), "parameters.seed"),
        (sampling("seed", "temperature", temperature=-1), "inputs[1]"),
        (sampling("temperature", "seed", temperature=-1), "inputs[0]"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_bad_request_of_the_open_inference_protocol_names_the_field(
    channel: grpc.Channel, request_: oip.ModelInferRequest, field: str
) -> None:
    error = refused(lambda: GRPCInferenceServiceStub(channel).ModelInfer(request_))
    assert error.code() is INVALID
    (violation,) = details_of(error)["BadRequest"].field_violations
    assert (violation.field, violation.description) == (field, error.details())


def test_the_sampler_takes_its_inputs_in_any_order(channel: grpc.Channel) -> None:
    infer = GRPCInferenceServiceStub(channel).ModelInfer
    one, other = infer(sampling("seed", "temperature")), infer(sampling("temperature", "seed"))
    assert one.raw_output_contents == other.raw_output_contents


def test_an_error_that_no_field_caused_names_none(stub: GlowServiceStub, channel: grpc.Channel) -> None:
    bytes_call = channel.unary_unary("/glowserve.v1.GlowService/Score")
    for call, reason in (
        (lambda: stub.GetModel(pb.GetModelRequest(model={"name": "nobody"})), "MODEL_NOT_FOUND"),
        (lambda: stub.Sample(pb.SampleRequest(n=1, seed=0, temperature=1e30)), "NOT_FINITE"),
        (lambda: bytes_call(b"\xff"), "INVALID_REQUEST"),
    ):
        found = details_of(refused(call))
        assert found == {"ErrorInfo": error_details_pb2.ErrorInfo(reason=reason, domain="glowserve")}


def test_the_longest_message_reaches_its_caller_with_its_details(channel: grpc.Channel) -> None:
    """Metadata of more than 8 KiB may be refused by clients, whose error would then say nothing."""
    names = [{"name": f"{i}{200 * chr(0x1F600)}"} for i in range(8)]
    error = refused(lambda: GRPCInferenceServiceStub(channel).ModelInfer(infer_request(inputs=names)))
    assert error.code() is INVALID, error.details()
    assert details_of(error)["BadRequest"].field_violations[0].field == "inputs"


def test_details_stand_beside_the_id_of_the_call(stub: GlowServiceStub) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        stub.Score(pb.ScoreRequest(), metadata=[("x-request-id", "mine")])
    assert ("x-request-id", "mine") in caught.value.trailing_metadata()
    assert "BadRequest" in details_of(caught.value)


def test_a_full_queue_says_when_to_come_back(run_server: Callable[..., Any], digits: UInt8Array) -> None:
    settings = {"max_queue_size": 8, "max_images_per_call": 8, "max_batch_size": 8}
    with (
        run_server(**settings, max_queue_delay_ms=600_000.0, drain_seconds=0.0) as server,
        grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel,
        glowserve.Client(f"127.0.0.1:{server.port}") as client,
    ):
        stub = GlowServiceStub(channel)
        waits = stub.Score.future(pb.ScoreRequest(images=raw(digits[:7])))
        labels = {"model": "digits", "direction": "forward"}
        length = server.metrics.registry.get_sample_value
        wait_for(lambda: length("glowserve_queue_length", labels) == 7)
        error = refused(lambda: stub.Score(pb.ScoreRequest(images=raw(digits[:2]))))
        assert error.code() is StatusCode.RESOURCE_EXHAUSTED
        found = details_of(error)
        assert found["ErrorInfo"].reason == "QUEUE_FULL"
        assert found["RetryInfo"].retry_delay.ToNanoseconds() == 10**9  # nothing was measured

        with pytest.raises(glowserve.RequestError) as caught:
            client.score(digits[:2])
        assert (caught.value.reason, caught.value.retry_after) == ("QUEUE_FULL", 1.0)

        async def ask() -> None:
            async with AsyncClient(f"127.0.0.1:{server.port}") as asynchronous:
                await asynchronous.score(digits[:2])

        with pytest.raises(glowserve.RequestError) as caught:
            asyncio.run(ask())
        assert (caught.value.reason, caught.value.retry_after) == ("QUEUE_FULL", 1.0)
        waits.cancel()


def test_a_server_that_stops_says_when_to_come_back(run_server: Callable[..., Any]) -> None:
    with run_server() as server, grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        server._edge.refuse()
        error = refused(lambda: GlowServiceStub(channel).ListModels(pb.ListModelsRequest()))
    assert error.code() is StatusCode.UNAVAILABLE
    found = details_of(error)
    assert found["ErrorInfo"].reason == "SERVER_UNAVAILABLE"
    assert found["RetryInfo"].retry_delay.ToNanoseconds() == 10**9


def test_an_error_of_the_client_has_its_reason(client: glowserve.Client, embedded: Any) -> None:
    for model in (client, embedded):
        with pytest.raises(glowserve.RequestError) as caught:
            model.score(np.zeros((3, 3, 1), np.uint8))
        assert (caught.value.code, caught.value.reason, caught.value.retry_after) == (
            INVALID,
            "INVALID_REQUEST",
            None,
        )
    with glowserve.Client("127.0.0.1:1", timeout=0.2) as nobody:
        with pytest.raises(glowserve.RequestError) as caught:
            nobody.models()
        assert (caught.value.reason, caught.value.retry_after) == ("", None)


def test_a_pause_of_a_fraction_of_a_second_is_told_exactly() -> None:
    error = QueueFullError("full", retry_seconds=2.345678901)
    ((_, data),) = status.trailing_metadata(error, "full")
    packed = rpc_status.status_pb2.Status.FromString(data).details[1]
    info = error_details_pb2.RetryInfo()
    packed.Unpack(info)
    assert info.retry_delay.ToNanoseconds() == 2_345_678_901
