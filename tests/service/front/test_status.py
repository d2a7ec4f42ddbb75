"""The status of an error: its code, its reason, the field that is wrong, and when to try again."""

from __future__ import annotations

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
from glowserve.images import UInt8Array, encode_png
from glowserve.oip import grpc_service_pb2 as oip
from glowserve.oip.grpc_service_pb2_grpc import GRPCInferenceServiceStub
from glowserve.runtime import errors as runtime_errors
from glowserve.runtime.errors import DeviceError, GlowserveError, InvalidRequestError, NotFiniteError
from glowserve.v1 import glow_service_pb2 as pb
from glowserve.v1 import tensor_pb2
from glowserve.v1.glow_service_pb2_grpc import GlowServiceStub
from tests.servers import RunServer
from tests.service.metrics import queue_length
from tests.service.stubs import address, connect
from tests.service.wire import raw, wait_for

TABLE = Path(__file__).parents[3] / "docs" / "errors.md"
INVALID = StatusCode.INVALID_ARGUMENT
DETAILS = {
    "ErrorInfo": error_details_pb2.ErrorInfo,
    "BadRequest": error_details_pb2.BadRequest,
    "RetryInfo": error_details_pb2.RetryInfo,
}
# These end the start of a service, which has no callers then.
START_UP = {DeviceError, errors.PortError, errors.TracingError}


def details_of(error: grpc.RpcError) -> dict[str, Message]:
    """The details of a status, by kind. `from_call` checks that code and message agree with the status."""
    found = {}
    for packed in rpc_status.from_call(error).details:
        name = packed.type_url.removeprefix("type.googleapis.com/google.rpc.")
        found[name] = DETAILS[name]()
        assert packed.Unpack(found[name])
    return found


def error_of(call: Callable[[], Any]) -> grpc.RpcError:
    """The error of a call that must fail."""

    def call_to_the_end() -> Any:
        response = call()
        return list(response) if isinstance(response, Iterator) else response

    with pytest.raises(grpc.RpcError) as caught:
        call_to_the_end()
    return caught.value


def test_every_error_that_a_caller_can_see_has_a_status() -> None:
    found = {
        kind
        for module in (errors, runtime_errors)
        for _, kind in inspect.getmembers(module, inspect.isclass)
        if issubclass(kind, GlowserveError) and kind is not GlowserveError
    }
    assert found - START_UP == set(status.STATUSES)


def test_the_table_in_the_docs_lists_every_status_with_its_details() -> None:
    rows = re.findall(r"^\| `([A-Z_]+)` \| `([A-Z_]+)` \| .+? \| (.+?) \| .+ \|$", TABLE.read_text(), re.M)
    assert len({reason for _, reason, _ in rows}) == len(rows)
    listed = {reason: (code, set(re.findall(r"`(\w+)`", details))) for code, reason, details in rows}

    def example(kind: type[GlowserveError]) -> GlowserveError:
        if kind is InvalidRequestError:
            return InvalidRequestError("n is 0", "n")
        return NotFiniteError("no", 1) if kind is NotFiniteError else kind("no")

    sent = {}
    for error in [*map(example, status.STATUSES), ZeroDivisionError("secret")]:
        ((_, data),) = status.trailing_metadata(error, "no")
        details = rpc_status.status_pb2.Status.FromString(data).details
        kinds = {packed.type_url.rpartition(".")[2] for packed in details}
        assert b"secret" not in data
        sent[status.reason_of(error)] = status.status_of(error).name, kinds - {"ErrorInfo"}
    assert listed == sent


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
        ("Explain", pb.ExplainRequest(images=pb.Images(encoded={"data": [b"?"]})), "images.encoded.data[0]"),
        ("Explain", pb.ExplainRequest(images=pb.Images(tensor=WIDE)), "images.tensor.shape"),
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
def test_a_malformed_request_names_the_field(
    stub: GlowServiceStub, method: str, request_: Message, field: str
) -> None:
    error = error_of(lambda: getattr(stub, method)(request_))
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
    """One row for the sampler, with its inputs in this order."""
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
def test_a_malformed_request_of_the_open_inference_protocol_names_the_field(
    channel: grpc.Channel, request_: oip.ModelInferRequest, field: str
) -> None:
    error = error_of(lambda: GRPCInferenceServiceStub(channel).ModelInfer(request_))
    assert error.code() is INVALID
    (violation,) = details_of(error)["BadRequest"].field_violations
    assert (violation.field, violation.description) == (field, error.details())


def test_the_sampler_takes_its_inputs_in_any_order(channel: grpc.Channel) -> None:
    infer = GRPCInferenceServiceStub(channel).ModelInfer
    one, other = infer(sampling("seed", "temperature")), infer(sampling("temperature", "seed"))
    assert one.raw_output_contents == other.raw_output_contents


def test_an_error_that_no_field_caused_names_no_field(stub: GlowServiceStub, channel: grpc.Channel) -> None:
    bytes_call = channel.unary_unary("/glowserve.v1.GlowService/Score")
    for call, reason in (
        (lambda: stub.GetModel(pb.GetModelRequest(model={"name": "nobody"})), "MODEL_NOT_FOUND"),
        (lambda: stub.Sample(pb.SampleRequest(n=1, seed=0, temperature=3e38)), "NOT_FINITE"),
        (lambda: bytes_call(b"\xff"), "INVALID_REQUEST"),
    ):
        found = details_of(error_of(call))
        assert found == {"ErrorInfo": error_details_pb2.ErrorInfo(reason=reason, domain="glowserve")}


def test_a_very_long_message_is_shortened_and_keeps_its_details(channel: grpc.Channel) -> None:
    """Clients may refuse metadata of more than 8 KiB. Their error would then say nothing."""
    names = [{"name": f"{i}{200 * chr(0x1F600)}"} for i in range(8)]
    error = error_of(lambda: GRPCInferenceServiceStub(channel).ModelInfer(infer_request(inputs=names)))
    assert error.code() is INVALID, error.details()
    assert details_of(error)["BadRequest"].field_violations[0].field == "inputs"


def test_the_metadata_has_the_id_of_the_call_beside_the_details(stub: GlowServiceStub) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        stub.Score(pb.ScoreRequest(), metadata=[("x-request-id", "mine")])
    assert ("x-request-id", "mine") in caught.value.trailing_metadata()
    assert "BadRequest" in details_of(caught.value)


@pytest.mark.parametrize(
    ("images", "facts"),
    [
        (raw(np.zeros((5, 8, 8, 1), np.uint8)), {"max_images_per_call": "4"}),
        (pb.Images(encoded={"data": [b"?"] * 5}), {"max_images_per_call": "4"}),
        (
            pb.Images(encoded={"data": [encode_png(np.zeros((9, 9, 1), np.uint8))]}),
            {"max_pixels_per_call": "80"},
        ),
        (pb.Images(encoded={"data": [b"?"] * 4}), {}),
        (raw(np.zeros((0, 8, 8, 1), np.uint8)), {}),
        (raw(np.zeros((5, 9, 8, 1), np.uint8)), {}),
    ],
)
def test_a_call_that_is_too_large_is_told_the_limit(
    run_server: RunServer, images: pb.Images, facts: dict[str, str]
) -> None:
    with run_server(max_images_per_call=4, max_pixels_per_call=80) as server, connect(server) as stubs:
        found = details_of(error_of(lambda: stubs.glow.Encode(pb.EncodeRequest(images=images))))
    assert found["ErrorInfo"].metadata == facts


@pytest.fixture(scope="module")
def full(run_server: RunServer, digits: UInt8Array) -> Iterator[Server]:
    """A server with 7 images in a queue of 8, which wait for a batch that is never full."""
    settings = {"max_queue_size": 8, "max_images_per_call": 8, "max_batch_size": 8}
    with (
        run_server(**settings, max_queue_delay_ms=600_000.0, drain_seconds=0.0) as server,
        connect(server) as stubs,
    ):
        waiting = stubs.glow.Score.future(pb.ScoreRequest(images=raw(digits[:7])))
        wait_for(lambda: queue_length(server) == 7)
        yield server
        waiting.cancel()


def test_a_full_queue_says_when_to_try_again(full: Server, digits: UInt8Array) -> None:
    with connect(full) as stubs:
        error = error_of(lambda: stubs.glow.Score(pb.ScoreRequest(images=raw(digits[:2]))))
    assert error.code() is StatusCode.RESOURCE_EXHAUSTED
    found = details_of(error)
    assert found["ErrorInfo"].reason == "QUEUE_FULL"
    assert found["RetryInfo"].retry_delay.ToNanoseconds() == 10**9  # nothing was measured


def test_the_client_says_when_to_try_again(full: Server, digits: UInt8Array) -> None:
    with (
        glowserve.Client(address(full), timeout=1) as client,  # too short for another attempt
        pytest.raises(glowserve.RequestError) as caught,
    ):
        client.score(digits[:2])
    assert (caught.value.reason, caught.value.retry_after) == ("QUEUE_FULL", 1.0)


async def test_the_asynchronous_client_says_when_to_try_again(full: Server, digits: UInt8Array) -> None:
    async with glowserve.AsyncClient(address(full), timeout=1) as client:
        with pytest.raises(glowserve.RequestError) as caught:
            await client.score(digits[:2])
    assert (caught.value.reason, caught.value.retry_after) == ("QUEUE_FULL", 1.0)


def test_an_error_of_the_client_has_its_reason(client: glowserve.Client, embedded: glowserve.Client) -> None:
    for model in (client, embedded):
        with pytest.raises(glowserve.RequestError) as caught:
            model.score(np.zeros((3, 3, 1), np.uint8))
        error = caught.value
        assert (error.code, error.reason, error.retry_after) == (INVALID, "INVALID_REQUEST", None)
    with glowserve.Client("127.0.0.1:1", timeout=0.2) as nobody:
        with pytest.raises(glowserve.RequestError) as caught:
            nobody.models()
        assert (caught.value.reason, caught.value.retry_after) == ("", None)


def test_a_server_that_is_starting_or_stopping_may_be_tried_again_after_a_second() -> None:
    assert status.retry_seconds(errors.UnavailableError("the server is stopping")) == 1.0


def test_a_fraction_of_a_second_is_sent_exactly() -> None:
    error = QueueFullError("full", retry_seconds=2.345678901)
    ((_, data),) = status.trailing_metadata(error, "full")
    packed = rpc_status.status_pb2.Status.FromString(data).details[1]
    info = error_details_pb2.RetryInfo()
    packed.Unpack(info)
    assert info.retry_delay.ToNanoseconds() == 2_345_678_901
