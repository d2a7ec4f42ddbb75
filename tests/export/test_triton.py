"""The layout for Triton: what its own schema reads there, and what a client of Triton gets of it.

tritonclient's messages have names that other protos have, too. So everything that imports it runs in a process of its
own: this file, called with the name of one of the functions under "In a process of their own" and its arguments.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import glowserve_export.triton
import numpy as np
import onnxruntime
import pytest
from glowserve_export.errors import ExportError
from glowserve_export.triton import write_triton

from glowserve.images import UInt8Array
from glowserve.runtime.errors import BundleError
from glowserve.runtime.repository import Bundle

_DOCUMENT = Path(__file__).parents[2] / "docs" / "triton.md"
_GRAPHS = {"digits_forward": "forward.onnx", "digits_reverse": "reverse.onnx"}
_TYPES = {"TYPE_UINT8": "tensor(uint8)", "TYPE_FP32": "tensor(float)"}
_DTYPES = {"TYPE_UINT8": np.uint8, "TYPE_FP32": np.float32}


@pytest.fixture
def repository_of_triton(bundle: Bundle, tmp_path: Path) -> Path:
    """The shared bundle, laid out."""
    write_triton(bundle, tmp_path / "triton")
    return tmp_path / "triton"


@pytest.fixture
def configuration(repository_of_triton: Path) -> Callable[[str], dict[str, Any]]:
    """What Triton's schema reads in a model's configuration."""
    return lambda name: _configuration(repository_of_triton / name)


def _configuration(model: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads(_apart("print_configuration", model / "config.pbtxt"))
    return read


def _apart(function: str, *arguments: object) -> str:
    command = [sys.executable, "-W", "error", __file__, function, *map(str, arguments)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=120).stdout


def _version(bundle: Bundle, version: int, **flow: str) -> Bundle:
    """The bundle as if it had been exported under another number, or with another flow in its manifest."""
    manifest = type(bundle.manifest)()
    manifest.CopyFrom(bundle.manifest)
    manifest.version = version
    for name, value in flow.items():
        setattr(manifest.flow, name, value)
    return replace(bundle, manifest=manifest)


def _files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


# What is written


def test_a_bundle_becomes_two_models_of_its_graphs_byte_for_byte(bundle: Bundle, tmp_path: Path) -> None:
    written = write_triton(bundle, tmp_path / "new" / "triton")
    assert written == [tmp_path / "new" / "triton" / name / "1" for name in _GRAPHS]
    assert _files(tmp_path) == {
        f"new/triton/{name}/{file}" for name in _GRAPHS for file in ("config.pbtxt", "1/model.onnx")
    }
    for folder, graph in zip(written, _GRAPHS.values(), strict=True):
        assert (folder / "model.onnx").read_bytes() == bundle.read(graph)


def test_other_versions_stay_and_the_newest_is_configured(bundle: Bundle, repository_of_triton: Path) -> None:
    for version in (3, 2):  # also when it is an older one that is wanted back
        write_triton(_version(bundle, version), repository_of_triton)
        for name in _GRAPHS:
            read = _configuration(repository_of_triton / name)
            assert read["version_policy"] == {"specific": {"versions": [str(version)]}}
            assert read["parameters"]["version"] == {"string_value": str(version)}
    for name in _GRAPHS:
        kept = {entry.name for entry in (repository_of_triton / name).iterdir()}
        assert kept == {"1", "2", "3", "config.pbtxt"}


def test_the_same_bundle_can_be_written_again(bundle: Bundle, repository_of_triton: Path) -> None:
    (repository_of_triton / "digits_reverse" / "config.pbtxt").unlink()
    before = _files(repository_of_triton)
    write_triton(bundle, repository_of_triton)
    assert _files(repository_of_triton) == before | {"digits_reverse/config.pbtxt"}


@pytest.mark.parametrize("content", ["another model", None])
def test_another_model_under_that_version_is_never_replaced(
    bundle: Bundle, tmp_path: Path, content: str | None
) -> None:
    folder = tmp_path / "digits_reverse" / "1"
    folder.mkdir(parents=True)
    if content:
        (folder / "model.onnx").write_text(content)
    before = _files(tmp_path)
    with pytest.raises(
        ExportError, match=r"digits_reverse/1 is there already, and is not this model; remove it"
    ):
        write_triton(bundle, tmp_path)
    assert _files(tmp_path) == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["digits_reverse"]


def test_a_damaged_bundle_is_refused_with_nothing_written(bundle: Bundle, tmp_path: Path) -> None:
    damaged = replace(bundle, path=tmp_path / "bundle")
    damaged.path.mkdir()
    for name in _GRAPHS.values():
        (damaged.path / name).write_bytes(bundle.read(name))
    (damaged.path / "reverse.onnx").write_bytes(b"damaged")
    with pytest.raises(BundleError, match=r"reverse\.onnx is not the file that was exported"):
        write_triton(damaged, tmp_path / "triton")
    assert not (tmp_path / "triton").exists()


def test_an_interruption_leaves_what_was_there(
    bundle: Bundle, repository_of_triton: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {name: (repository_of_triton / name).read_bytes() for name in _files(repository_of_triton)}
    atomic_write, calls = glowserve_export.triton.atomic_write, iter(range(10))

    def interrupted(path: Path) -> Any:
        if next(calls) == 3:  # all but the last file are there
            assert len(_files(repository_of_triton)) == len(before) + 3
            raise KeyboardInterrupt
        return atomic_write(path)

    monkeypatch.setattr(glowserve_export.triton, "atomic_write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_triton(_version(bundle, 2), repository_of_triton)
    assert {
        name: (repository_of_triton / name).read_bytes() for name in _files(repository_of_triton)
    } == before
    assert {entry.name for entry in repository_of_triton.iterdir()} == set(_GRAPHS)


# What Triton reads


@pytest.mark.parametrize("name", _GRAPHS)
def test_tritons_schema_reads_how_a_model_is_to_run(
    name: str, bundle: Bundle, configuration: Callable[[str], dict[str, Any]]
) -> None:
    read = configuration(name)
    assert (read["name"], read["backend"], read["max_batch_size"]) == (name, "onnxruntime", 32)
    assert read["version_policy"] == {"specific": {"versions": ["1"]}}
    batching = read["dynamic_batching"]
    assert batching == {"preferred_batch_size": [8, 32], "max_queue_delay_microseconds": "1000"}
    assert read["instance_group"] == [{"count": 1}]  # KIND_AUTO is what a kind is by default
    assert read["optimization"]["execution_accelerators"]["gpu_execution_accelerator"] == [
        {"name": "tensorrt", "parameters": {"precision_mode": "FP32"}},
        {"name": "cuda", "parameters": {"use_tf32": "0"}},
    ]
    parameters = {key: value["string_value"] for key, value in read["parameters"].items()}
    assert float(parameters.pop("log_det_constant")) == bundle.manifest.log_det_constant
    assert parameters == {
        "cudnn_conv_algo_search": "1",
        "model": "digits",
        "version": "1",
        "n_bits": "4",
        "precision": "fp32",
    }


def test_tensorrt_is_left_out_of_a_bundle_of_lower_precision(bundle: Bundle, tmp_path: Path) -> None:
    write_triton(_version(bundle, 1, precision="int8"), tmp_path)
    read = _configuration(tmp_path / "digits_forward")
    accelerators = read["optimization"]["execution_accelerators"]["gpu_execution_accelerator"]
    assert [accelerator["name"] for accelerator in accelerators] == ["cuda"]


@pytest.mark.parametrize("name", _GRAPHS)
def test_every_tensor_is_the_graphs(
    name: str, repository_of_triton: Path, configuration: Callable[[str], dict[str, Any]]
) -> None:
    session = onnxruntime.InferenceSession(repository_of_triton / name / "1" / "model.onnx")
    read = configuration(name)
    for ours, theirs in ((read["input"], session.get_inputs()), (read["output"], session.get_outputs())):
        assert [tensor["name"] for tensor in ours] == [tensor.name for tensor in theirs]
        for our, their in zip(ours, theirs, strict=True):
            assert _TYPES[our["data_type"]] == their.type
            assert ["N", *_dims_of_the_graph(our)] == their.shape
            # Triton knows no tensor without dims; one that has none in the graph is reshaped.
            assert our["dims"] == (["1"] if their.shape == ["N"] else [str(dim) for dim in their.shape[1:]])


@pytest.mark.parametrize("name", _GRAPHS)
def test_the_graphs_run_with_every_batch_that_is_promised(
    name: str,
    repository_of_triton: Path,
    configuration: Callable[[str], dict[str, Any]],
    rng: np.random.Generator,
) -> None:
    session = onnxruntime.InferenceSession(repository_of_triton / name / "1" / "model.onnx")
    read = configuration(name)
    sizes = {1, 2, read["max_batch_size"], *read["dynamic_batching"]["preferred_batch_size"]}
    for size in sizes:
        batch = {
            tensor["name"]: rng.random((size, *map(int, tensor["dims"]))).astype(_DTYPES[tensor["data_type"]])
            for tensor in read["input"]
        }
        outputs = session.run([tensor["name"] for tensor in read["output"]], batch)
        for tensor, output in zip(read["output"], outputs, strict=True):
            assert output.shape == (size, *_dims_of_the_graph(tensor))
            assert output.dtype == _DTYPES[tensor["data_type"]]


@pytest.mark.parametrize("name", _GRAPHS)
def test_warmup_runs_the_smallest_and_the_largest_batch(
    name: str, configuration: Callable[[str], dict[str, Any]]
) -> None:
    read = configuration(name)
    assert [warmup["batch_size"] for warmup in read["model_warmup"]] == [1, read["max_batch_size"]]
    inputs = {
        tensor["name"]: {"data_type": tensor["data_type"], "dims": tensor["dims"], "zero_data": True}
        for tensor in read["input"]
    }
    assert all(warmup["inputs"] == inputs for warmup in read["model_warmup"])


def _dims_of_the_graph(tensor: dict[str, Any]) -> list[int]:
    """Without N."""
    dims = tensor["reshape"].get("shape", []) if "reshape" in tensor else tensor["dims"]
    return [int(dim) for dim in dims]


# What a client gets


def test_the_documented_client_gets_what_the_service_answers(
    bundle: Bundle, repository_of_triton: Path, digits: UInt8Array, embedded: Any, tmp_path: Path
) -> None:
    np.save(tmp_path / "images.npy", digits[:20])
    _apart("run_documented_client", repository_of_triton, bundle.path, tmp_path)
    answer = np.load(tmp_path / "answer.npz")
    scores = embedded.score(digits[:20], seed=7)
    np.testing.assert_allclose(answer["bits_per_dim"], scores.bits_per_dim, rtol=1e-6)
    np.testing.assert_allclose(answer["percentile"], scores.percentile, atol=1e-6)
    samples = embedded.sample(5, seed=3, temperature=0.8)
    np.testing.assert_array_equal(answer["samples"], samples.images)
    assert str(answer["error"]) == "temperature 1e+30 is too high: a sample is not finite"


# In a process of their own


def print_configuration(path: str) -> None:
    """The configuration at a path as JSON, if Triton's schema knows each of its fields."""
    from google.protobuf.json_format import MessageToJson

    print(MessageToJson(read_configuration(Path(path)), preserving_proto_field_name=True))


def read_configuration(path: Path) -> Any:
    from google.protobuf import text_format
    from tritonclient.grpc.model_config_pb2 import ModelConfig

    return text_format.Parse(path.read_text(), ModelConfig())


def run_documented_client(repository: str, bundle: str, folder: str) -> None:
    """The client in docs/triton.md, against a server of Triton's messages that has this repository."""
    import grpc
    from tritonclient.grpc import service_pb2_grpc

    [code] = re.findall(r"```python\n(.*?)```", _DOCUMENT.read_text(), re.DOTALL)
    server = grpc.server(ThreadPoolExecutor(1))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(standin(Path(repository)), server)
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
        client["sample"](1, seed=3, temperature=1e30)
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


def standin(repository: Path) -> Any:
    """Takes Triton's requests, holds them against the configuration, and answers with ONNX Runtime."""
    from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc

    class Standin(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
        def ModelInfer(self, request: Any, context: Any) -> Any:
            read = read_configuration(repository / request.model_name / "config.pbtxt")
            assert request.model_version in map(str, read.version_policy.specific.versions)
            assert {tensor.name for tensor in request.inputs} == {tensor.name for tensor in read.input}
            configured, batch = {tensor.name: tensor for tensor in read.input}, {}
            for tensor, data in zip(request.inputs, request.raw_input_contents, strict=True):
                kind = model_config_pb2.DataType.Name(configured[tensor.name].data_type)
                assert f"TYPE_{tensor.datatype}" == kind
                assert 1 <= tensor.shape[0] <= read.max_batch_size
                assert tensor.shape[1:] == configured[tensor.name].dims
                batch[tensor.name] = np.frombuffer(data, _DTYPES[kind]).reshape(tensor.shape)
            path = repository / request.model_name / request.model_version / "model.onnx"
            outputs = onnxruntime.InferenceSession(path).run([tensor.name for tensor in read.output], batch)
            response = service_pb2.ModelInferResponse(
                model_name=request.model_name, model_version=request.model_version
            )
            for tensor, output in zip(read.output, outputs, strict=True):
                kind = model_config_pb2.DataType.Name(tensor.data_type).removeprefix("TYPE_")
                response.outputs.add(name=tensor.name, datatype=kind, shape=[len(output), *tensor.dims])
                response.raw_output_contents.append(output.tobytes())
            return response

    return Standin()


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
