"""Reads and writes the tensors of the Open Inference Protocol; a malformed one is an InvalidRequestError.

Shapes: N images, or samples, of a request.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from glowserve.oip import grpc_service_pb2 as pb
from glowserve.runtime.errors import InvalidRequestError
from glowserve_service.errors import UnsupportedError
from glowserve_service.scheduling.engine_threads import Array

_DTYPES = {"UINT8": "u1", "UINT64": "<u8", "INT64": "<i8", "FP32": "<f4", "FP64": "<f8", "BOOL": "?"}
# The field of InferTensorContents that holds them; bytes go as 32 bits there.
_CONTENTS = {
    "UINT8": "uint_contents",
    "UINT64": "uint64_contents",
    "INT64": "int64_contents",
    "FP32": "fp32_contents",
}
_UNSUPPORTED = ("shared_memory_", "sequence_", "classification", "binary_data")


@dataclass(frozen=True)
class Tensor:
    """An input or output of a model."""

    name: str
    datatype: str
    """As the protocol calls it."""

    row: tuple[int, ...]
    """Its shape, without N."""


@dataclass(frozen=True)
class Inputs:
    """The inputs of a request, whose types and shapes have been checked."""

    rows: int
    """N, 1 or more."""

    size: int
    """About how many bytes `read` goes through; 0 where the arrays lie in the request as they are."""

    read: Callable[[], list[Array]]
    """The arrays, [N, *row] each, in the order of the model's inputs; raises InvalidRequestError."""


def check_supported(request: pb.ModelInferRequest) -> None:
    """Refuses requests with parameters that this service does not implement, and that change what an answer means.

    Raises:
        UnsupportedError: the message names the parameter.
    """
    names = [
        *request.parameters,
        *(name for tensor in request.inputs for name in tensor.parameters),
        *(name for tensor in request.outputs for name in tensor.parameters),
    ]
    for name in names:
        if name.startswith(_UNSUPPORTED):
            raise UnsupportedError(
                f"parameter {name[:128]!r} is not supported: neither shared memory, sequences, classification nor "
                "HTTP's binary data are; send the values in the request, and leave it out"
            )


def read_seed(request: pb.ModelInferRequest, default: int) -> int:
    """The parameter `seed` of a request.

    Raises:
        InvalidRequestError: it is no whole number, or negative.
    """
    if "seed" not in request.parameters:
        return default
    seed = request.parameters["seed"]
    kind = seed.WhichOneof("parameter_choice")
    if kind not in ("int64_param", "uint64_param"):
        raise InvalidRequestError(
            f"parameter 'seed' has {kind}; it must have int64_param or uint64_param", "parameters.seed"
        )
    value: int = getattr(seed, kind)
    if value < 0:
        raise InvalidRequestError(f"parameter 'seed' is {value}; it must be 0 or more", "parameters.seed")
    return value


def read_false_alarm_rate(request: pb.ModelInferRequest) -> float | None:
    """The parameter `false_alarm_rate` of a request; None if it has none.

    Raises:
        InvalidRequestError: it is no floating-point number.
    """
    if "false_alarm_rate" not in request.parameters:
        return None
    rate = request.parameters["false_alarm_rate"]
    if (kind := rate.WhichOneof("parameter_choice")) != "double_param":
        raise InvalidRequestError(
            f"parameter 'false_alarm_rate' has {kind}; it must have double_param",
            "parameters.false_alarm_rate",
        )
    return float(rate.double_param)


def read_outputs(
    request: pb.ModelInferRequest, named: Sequence[Tensor], unnamed: Sequence[Tensor]
) -> list[Tensor]:
    """The outputs that a request asks for.

    Args:
        request: as it came.
        named: the outputs that it may name.
        unnamed: the outputs that it gets if it names none.

    Raises:
        InvalidRequestError: there is no such output.
    """
    known = {tensor.name: tensor for tensor in named}
    for i, wanted in enumerate(request.outputs):
        if wanted.name not in known:
            raise InvalidRequestError(
                f"output {wanted.name[:128]!r} is not one of this model's, {_names(named)}",
                f"outputs[{i}].name",
            )
    return [known[wanted.name] for wanted in request.outputs] or list(unnamed)


def read_inputs(request: pb.ModelInferRequest, inputs: Sequence[Tensor], *, max_rows: int) -> Inputs:
    """The inputs of a request. Values that are not raw are read by `Inputs.read`.

    Args:
        request: as it came.
        inputs: what the model takes.
        max_rows: most rows, N, that are accepted.

    Raises:
        InvalidRequestError: the message names the input, the value, and what would be accepted.
    """
    if sorted(given.name for given in request.inputs) != sorted(tensor.name for tensor in inputs):
        raise InvalidRequestError(
            f"inputs are {_names(request.inputs)}; this model takes {_names(inputs)}, each once", "inputs"
        )
    raw = request.raw_input_contents
    if raw and len(raw) != len(inputs):
        raise InvalidRequestError(
            f"raw_input_contents has {len(raw)} values and there are {len(inputs)} inputs; it takes one for each, "
            "or none",
            "raw_input_contents",
        )
    place = {tensor.name: i for i, tensor in enumerate(request.inputs)}
    for tensor in inputs:
        _check(tensor, request.inputs[place[tensor.name]], place[tensor.name], max_rows)
    rows = {tensor.name: request.inputs[place[tensor.name]].shape[0] for tensor in inputs}
    if len(set(rows.values())) > 1:
        listed = ", ".join(f"{n} rows of {name}" for name, n in rows.items())
        raise InvalidRequestError(f"inputs have {listed}; they must have the same number", "inputs")
    n = next(iter(rows.values()))
    if raw:
        arrays = [_read_raw(tensor, request, place[tensor.name]) for tensor in inputs]
        return Inputs(n, 0, lambda: arrays)
    for tensor in inputs:
        _check_length(tensor, request, place[tensor.name])

    def read() -> list[Array]:
        return [_read_contents(tensor, request, place[tensor.name]) for tensor in inputs]

    return Inputs(n, request.ByteSize(), read)


def write_outputs(
    response: pb.ModelInferResponse, outputs: Iterable[Tensor], arrays: Mapping[str, Array]
) -> None:
    """Puts arrays, [N, *row] by name, into a response."""
    for tensor in outputs:
        array = arrays[tensor.name]
        response.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=array.shape)
        response.raw_output_contents.append(array.astype(_DTYPES[tensor.datatype], copy=False).tobytes())


def _check(tensor: Tensor, given: pb.ModelInferRequest.InferInputTensor, place: int, max_rows: int) -> None:
    name, field, shape = f"input {tensor.name!r}", f"inputs[{place}]", list(given.shape)
    if given.datatype != tensor.datatype:
        raise InvalidRequestError(
            f"{name}: datatype is {given.datatype[:128]!r}; it must be {tensor.datatype!r}",
            f"{field}.datatype",
        )
    if len(shape) != len(tensor.row) + 1 or shape[1:] != list(tensor.row):
        wanted = ", ".join(["N", *map(str, tensor.row)])
        raise InvalidRequestError(
            f"{name}: shape is {shape[:8]}; this model takes [{wanted}]", f"{field}.shape"
        )
    if not 1 <= shape[0] <= max_rows:
        raise InvalidRequestError(
            f"{name}: shape is {shape}; a request takes 1 to {max_rows} rows", f"{field}.shape"
        )


def _read_raw(tensor: Tensor, request: pb.ModelInferRequest, place: int) -> Array:
    name, given, raw = f"input {tensor.name!r}", request.inputs[place], request.raw_input_contents[place]
    if given.HasField("contents"):
        raise InvalidRequestError(
            f"{name}: it has contents, and raw_input_contents too; set one of them",
            f"inputs[{place}].contents",
        )
    shape, dtype = list(given.shape), np.dtype(_DTYPES[tensor.datatype])
    length = math.prod(shape) * dtype.itemsize
    if len(raw) != length:
        raise InvalidRequestError(
            f"{name}: raw_input_contents has {len(raw)} bytes; shape {shape} takes {length}",
            f"raw_input_contents[{place}]",
        )
    return np.frombuffer(raw, dtype).reshape(shape)


def _check_length(tensor: Tensor, request: pb.ModelInferRequest, place: int) -> None:
    given, field = request.inputs[place], _CONTENTS[tensor.datatype]
    shape, length = list(given.shape), len(getattr(given.contents, field))
    if length != math.prod(shape):
        raise InvalidRequestError(
            f"input {tensor.name!r}: contents.{field} has {length} values; shape {shape} takes {math.prod(shape)}, "
            "there or as bytes in raw_input_contents",
            f"inputs[{place}].contents.{field}",
        )


def _read_contents(tensor: Tensor, request: pb.ModelInferRequest, place: int) -> Array:
    given, field = request.inputs[place], _CONTENTS[tensor.datatype]
    values = getattr(given.contents, field)
    if tensor.datatype == "UINT8" and (largest := max(values)) > 255:
        raise InvalidRequestError(
            f"input {tensor.name!r}: contents.{field} has a {largest}; the most is 255",
            f"inputs[{place}].contents.{field}",
        )
    return np.array(values, _DTYPES[tensor.datatype]).reshape(list(given.shape))


def _names(tensors: Iterable[Any]) -> str:
    names = [tensor.name[:128] for tensor in tensors]
    return ", ".join(names[:16]) or "none"
