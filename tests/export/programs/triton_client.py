"""Reads Triton's configuration with Triton's own schema, and stands in for a Triton server.

triton_client.py print-configuration PATH
triton_client.py run-documented-client TRITON_REPOSITORY BUNDLE FOLDER
"""

from __future__ import annotations

import re
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnxruntime  # noqa: TID251  # the process that starts this one has turned its telemetry off
from google.protobuf import text_format
from google.protobuf.json_format import MessageToJson
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc

_DOCUMENT = Path(__file__).parents[3] / "docs" / "triton.md"
_DTYPES = {"TYPE_UINT8": np.uint8, "TYPE_FP32": np.float32}


def print_configuration(path: str) -> None:
    """Prints a config.pbtxt as JSON. Triton's schema must know each of its fields."""
    print(MessageToJson(read_configuration(Path(path)), preserving_proto_field_name=True))


def read_configuration(path: Path) -> Any:
    return text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())


def run_documented_client(repository: str, bundle: str, folder: str) -> None:
    """Runs the client in docs/triton.md on FOLDER/images.npy, and writes its results to FOLDER/answer.npz."""
    [code] = re.findall(r"```python\n(.*?)```", _DOCUMENT.read_text(), re.DOTALL)
    server = grpc.server(ThreadPoolExecutor(1))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Triton(Path(repository)), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    for documented, here in (
        ("localhost:8001", f"127.0.0.1:{port}"),
        ("models/mine/1", bundle),
        ('"mine_', '"digits_'),
    ):
        assert documented in code
        code = code.replace(documented, here)
    client: dict[str, Any] = {}
    exec(code, client)
    bits_per_dim, percentile = client["score"](np.load(Path(folder) / "images.npy"), seed=7)
    samples, error = client["sample"](5, seed=3, temperature=0.8), ""
    try:
        client["sample"](1, seed=3, temperature=3e38)
    except ValueError as raised:
        error = str(raised)
    np.savez(
        Path(folder) / "answer.npz",
        bits_per_dim=bits_per_dim,
        percentile=percentile,
        samples=samples,
        error=error,
    )
    client["client"].close()
    server.stop(None).wait()


class Triton(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """Answers Triton's requests with ONNX Runtime, if they fit the configuration.

    Args:
        repository: the model repository.
    """

    def __init__(self, repository: Path) -> None:
        self._repository = repository

    def ModelInfer(self, request: Any, context: Any) -> Any:
        read = read_configuration(self._repository / request.model_name / "config.pbtxt")
        assert request.model_version in map(str, read.version_policy.specific.versions)
        assert {tensor.name for tensor in request.inputs} == {tensor.name for tensor in read.input}
        configured, batch = {tensor.name: tensor for tensor in read.input}, {}
        for tensor, data in zip(request.inputs, request.raw_input_contents, strict=True):
            kind = model_config_pb2.DataType.Name(configured[tensor.name].data_type)
            assert f"TYPE_{tensor.datatype}" == kind
            assert 1 <= tensor.shape[0] <= read.max_batch_size
            assert tensor.shape[1:] == configured[tensor.name].dims
            batch[tensor.name] = np.frombuffer(data, _DTYPES[kind]).reshape(tensor.shape)
        path = self._repository / request.model_name / request.model_version / "model.onnx"
        outputs = onnxruntime.InferenceSession(path).run([tensor.name for tensor in read.output], batch)
        response = service_pb2.ModelInferResponse(
            model_name=request.model_name, model_version=request.model_version
        )
        for tensor, output in zip(read.output, outputs, strict=True):
            kind = model_config_pb2.DataType.Name(tensor.data_type).removeprefix("TYPE_")
            response.outputs.add(name=tensor.name, datatype=kind, shape=[len(output), *tensor.dims])
            response.raw_output_contents.append(output.tobytes())
        return response


if __name__ == "__main__":
    commands = {"print-configuration": print_configuration, "run-documented-client": run_documented_client}
    commands[sys.argv[1]](*sys.argv[2:])
