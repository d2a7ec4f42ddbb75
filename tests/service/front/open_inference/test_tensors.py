"""The tensors of a ModelInfer request: raw and typed contents, parameters, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
import pytest
from glowserve_service.front.open_inference import tensors
from glowserve_service.front.open_inference.tensors import Tensor

import glowserve
from glowserve.images import UInt8Array
from glowserve.oip import grpc_service_pb2 as pb
from glowserve.oip.grpc_service_pb2_grpc import GRPCInferenceServiceStub
from glowserve.runtime.errors import InvalidRequestError
from glowserve.scores import TABLE
from tests.service.front.open_inference.requests import image_request, output, sample_request
from tests.service.wire import refusal

INVALID = grpc.StatusCode.INVALID_ARGUMENT
IMAGE = (Tensor("image", "UINT8", (8, 8, 1)),)

Change = Callable[[pb.ModelInferRequest], Any]


# What is read


def test_typed_contents_have_the_answer_of_raw_bytes(
    inference: GRPCInferenceServiceStub, images: UInt8Array
) -> None:
    typed = image_request(images)
    typed.ClearField("raw_input_contents")
    typed.inputs[0].contents.uint_contents.extend(images.ravel().tolist())
    assert inference.ModelInfer(typed) == inference.ModelInfer(image_request(images))
    typed = sample_request([3, 4], [0.5, 0.25])
    typed.ClearField("raw_input_contents")
    typed.inputs[0].contents.uint64_contents.extend([3, 4])
    typed.inputs[1].contents.fp32_contents.extend([0.5, 0.25])
    assert inference.ModelInfer(typed) == inference.ModelInfer(sample_request([3, 4], [0.5, 0.25]))


def test_the_inputs_of_a_request_may_have_any_order(inference: GRPCInferenceServiceStub) -> None:
    request = sample_request([3, 4], [0.5, 0.25])
    reversed_request = sample_request([3, 4], [0.5, 0.25])
    for field in ("inputs", "raw_input_contents"):
        values = list(getattr(request, field))
        reversed_request.ClearField(field)
        getattr(reversed_request, field).extend(values[::-1])
    assert inference.ModelInfer(reversed_request) == inference.ModelInfer(request)


def test_a_seed_may_be_unsigned_and_unknown_parameters_are_ignored(
    inference: GRPCInferenceServiceStub, client: glowserve.Client, images: UInt8Array
) -> None:
    request = image_request(images, id="x", parameters={"seed": pb.InferParameter(uint64_param=2**64 - 1)})
    request.parameters["priority"].uint64_param = 2
    request.inputs[0].parameters["colour"].string_param = "blue"
    response = inference.ModelInfer(request)
    expected = client.score(images, seed=2**64 - 1).log_likelihood
    assert output(response, "log_likelihood").tolist() == expected.tolist()
    assert not response.parameters


def test_raw_bytes_are_used_as_they_are_and_typed_values_are_read_later(images: UInt8Array) -> None:
    """`size` is the work that `read` is: it decides whether a thread does it."""
    raw = tensors.read_inputs(image_request(images), IMAGE, max_rows=256)
    assert (raw.rows, raw.size) == (9, 0)
    typed = image_request(images)
    typed.ClearField("raw_input_contents")
    typed.inputs[0].contents.uint_contents.extend(images.ravel().tolist())
    later = tensors.read_inputs(typed, IMAGE, max_rows=256)
    assert (later.rows, later.size) == (9, typed.ByteSize())
    (one,), (other,) = raw.read(), later.read()
    assert one.dtype == other.dtype
    assert (one == other).all()


def test_only_values_out_of_range_are_found_when_typed_contents_are_read(images: UInt8Array) -> None:
    """Everything else is refused before the images are counted."""
    request = image_request(images[:2])
    request.ClearField("raw_input_contents")
    request.inputs[0].contents.uint_contents.extend([0] * 127)
    with pytest.raises(InvalidRequestError, match="has 127 values"):
        tensors.read_inputs(request, IMAGE, max_rows=256)
    request.inputs[0].contents.uint_contents.append(256)
    inputs = tensors.read_inputs(request, IMAGE, max_rows=256)
    with pytest.raises(InvalidRequestError, match="has a 256; the most is 255"):
        inputs.read()


# What is refused


def change(**fields: Any) -> Change:
    """Sets fields of the first input."""

    def apply(request: pb.ModelInferRequest) -> None:
        for name, value in fields.items():
            if isinstance(value, list):
                del getattr(request.inputs[0], name)[:]
                getattr(request.inputs[0], name).extend(value)
            else:
                setattr(request.inputs[0], name, value)

    return apply


def typed_contents(*values: int) -> Change:
    """Replaces the raw bytes."""

    def apply(request: pb.ModelInferRequest) -> None:
        request.ClearField("raw_input_contents")
        request.inputs[0].contents.uint_contents.extend(values)

    return apply


def seed(**value: Any) -> Change:
    """Sets the parameter of that name."""
    return lambda request: request.parameters["seed"].MergeFrom(pb.InferParameter(**value))


MALFORMED: dict[str, tuple[Change, str]] = {
    "version": (
        lambda request: setattr(request, "model_version", "new"),
        "the model's version is 'new'; it must be a number, or empty for the newest",
    ),
    "no inputs": (
        lambda request: request.ClearField("inputs"),
        "inputs are none; this model takes image, each once",
    ),
    "unknown input": (change(name="picture"), "inputs are picture; this model takes image, each once"),
    "an input twice": (
        lambda request: request.inputs.append(request.inputs[0]),
        "inputs are image, image; this model takes image, each once",
    ),
    "datatype": (change(datatype="FP32"), "input 'image': datatype is 'FP32'; it must be 'UINT8'"),
    "rank": (change(shape=[128]), "input 'image': shape is [128]; this model takes [N, 8, 8, 1]"),
    "channels first": (
        change(shape=[2, 1, 8, 8]),
        "input 'image': shape is [2, 1, 8, 8]; this model takes [N, 8, 8, 1]",
    ),
    "no rows": (
        change(shape=[0, 8, 8, 1]),
        "input 'image': shape is [0, 8, 8, 1]; a request takes 1 to 256 rows",
    ),
    "negative rows": (
        change(shape=[-1, 8, 8, 1]),
        "input 'image': shape is [-1, 8, 8, 1]; a request takes 1 to 256 rows",
    ),
    "too many rows": (
        change(shape=[257, 8, 8, 1]),
        "input 'image': shape is [257, 8, 8, 1]; a request takes 1 to 256 rows",
    ),
    "too few bytes": (
        change(shape=[3, 8, 8, 1]),
        "input 'image': raw_input_contents has 128 bytes; shape [3, 8, 8, 1] takes 192",
    ),
    "too many raw inputs": (
        lambda request: request.raw_input_contents.append(b""),
        "raw_input_contents has 2 values and there are 1 inputs; it takes one for each, or none",
    ),
    "raw and typed": (
        lambda request: request.inputs[0].contents.uint_contents.append(1),
        "input 'image': it has contents, and raw_input_contents too; set one of them",
    ),
    "no values": (
        lambda request: request.ClearField("raw_input_contents"),
        "input 'image': contents.uint_contents has 0 values; shape [2, 8, 8, 1] takes 128, there or as bytes in "
        "raw_input_contents",
    ),
    "a value over 255": (
        typed_contents(*127 * [0], 256),
        "input 'image': contents.uint_contents has a 256; the most is 255",
    ),
    "unknown output": (
        lambda request: request.outputs.add(name="latent"),
        "output 'latent' is not one of this model's, "
        + ", ".join(name for name in TABLE if name not in ("log_posterior", "standard_error")),
    ),
    "text as seed": (
        seed(string_param="1"),
        "parameter 'seed' has string_param; it must have int64_param or uint64_param",
    ),
    "negative seed": (seed(int64_param=-1), "parameter 'seed' is -1; it must be 0 or more"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_request_is_refused_with_a_sentence(
    inference: GRPCInferenceServiceStub, images: UInt8Array, case: str
) -> None:
    make_malformed, message = MALFORMED[case]
    request = image_request(images[:2], id="7")
    make_malformed(request)
    assert refusal(lambda: inference.ModelInfer(request)) == (INVALID, message)
    (response,) = inference.ModelStreamInfer(iter([request]))
    assert (response.error_message, response.infer_response) == (message, pb.ModelInferResponse(id="7"))


@pytest.mark.parametrize(
    ("request_", "code", "message"),
    [
        (
            sample_request([1, 2], [0.5]),
            INVALID,
            "inputs have 2 rows of seed, 1 rows of temperature; they must have the same number",
        ),
        (sample_request([1], [-1]), INVALID, "temperature is -1.0; it must be 0 or more, and finite"),
        (
            sample_request([1, 1], [0.0, 3e38]),
            grpc.StatusCode.FAILED_PRECONDITION,
            "input 'temperature': row 1 does not decode to a finite image; lower it, or request the output 'finite', "
            "which says which rows do",
        ),
    ],
    ids=["rows", "temperature", "not finite"],
)
def test_a_sample_that_cannot_be_drawn_is_refused(
    inference: GRPCInferenceServiceStub, request_: pb.ModelInferRequest, code: grpc.StatusCode, message: str
) -> None:
    assert refusal(lambda: inference.ModelInfer(request_)) == (code, message)


@pytest.mark.parametrize("name", ["classification", "binary_data", "shared_memory_region"])
def test_a_parameter_that_would_change_the_answers_form_is_refused(
    inference: GRPCInferenceServiceStub, images: UInt8Array, name: str
) -> None:
    request = image_request(images[:1])
    request.outputs.add(name="percentile").parameters[name].int64_param = 1
    code, message = refusal(lambda: inference.ModelInfer(request))
    assert code is grpc.StatusCode.UNIMPLEMENTED
    assert message.startswith(f"parameter '{name}' is not supported")
