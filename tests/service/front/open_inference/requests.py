"""Requests of the Open Inference Protocol, and the outputs of its responses."""

from __future__ import annotations

from typing import Any

import numpy as np

from glowserve.images import UInt8Array
from glowserve.oip import grpc_service_pb2 as pb

Input = pb.ModelInferRequest.InferInputTensor


def image_request(images: UInt8Array, **fields: Any) -> pb.ModelInferRequest:
    """Scores images; they are raw bytes."""
    return pb.ModelInferRequest(
        model_name="digits",
        inputs=[Input(name="image", datatype="UINT8", shape=images.shape)],
        raw_input_contents=[images.tobytes()],
        **fields,
    )


def sample_request(seeds: list[int], temperatures: list[float]) -> pb.ModelInferRequest:
    """Draws a sample for each seed and temperature; they are raw bytes."""
    return pb.ModelInferRequest(
        model_name="digits.sample",
        inputs=[
            Input(name="seed", datatype="UINT64", shape=[len(seeds), 1]),
            Input(name="temperature", datatype="FP32", shape=[len(temperatures), 1]),
        ],
        raw_input_contents=[np.array(seeds, "<u8").tobytes(), np.array(temperatures, "<f4").tobytes()],
    )


def output(response: pb.ModelInferResponse, name: str) -> np.ndarray[Any, Any]:
    """The output of that name."""
    ((tensor, data),) = [
        pair
        for pair in zip(response.outputs, response.raw_output_contents, strict=True)
        if pair[0].name == name
    ]
    dtype = {"FP64": "<f8", "UINT8": "u1", "BOOL": "?"}[tensor.datatype]
    return np.frombuffer(data, dtype).reshape(tuple(tensor.shape))
