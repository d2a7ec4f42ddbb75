"""The layout for Triton: what is written, what Triton's own schema reads, and what the documented client receives.

Names of tritonclient's messages clash with those of other protos. Therefore tritonclient is imported in another process
only: programs/triton_client.py.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import glowserve_export.triton
import numpy as np
import pytest
from glowserve_export.errors import ExportError
from glowserve_export.triton import write_triton

from glowserve.images import UInt8Array
from glowserve.runtime.errors import BundleError
from glowserve.runtime.ort import onnxruntime
from glowserve.runtime.repository import Bundle

_PROGRAM = Path(__file__).parent / "programs" / "triton_client.py"
_GRAPHS = {"digits_forward": "forward.onnx", "digits_reverse": "reverse.onnx"}
_TYPES = {"TYPE_UINT8": "tensor(uint8)", "TYPE_FP32": "tensor(float)"}
_DTYPES = {"TYPE_UINT8": np.uint8, "TYPE_FP32": np.float32}


@pytest.fixture
def triton_repository(bundle: Bundle, tmp_path: Path) -> Path:
    """A Triton model repository with the shared bundle."""
    write_triton(bundle, tmp_path / "triton")
    return tmp_path / "triton"


@pytest.fixture
def configuration(triton_repository: Path) -> Callable[[str], dict[str, Any]]:
    """A model's configuration as Triton's schema reads it."""
    return lambda name: _configuration(triton_repository / name)


def _configuration(model: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads(_run("print-configuration", model / "config.pbtxt"))
    return read


def _run(command: str, *arguments: object) -> str:
    """Runs programs/triton_client.py and returns its output."""
    program = [sys.executable, "-W", "error", str(_PROGRAM), command, *map(str, arguments)]
    return subprocess.run(program, check=True, stdout=subprocess.PIPE, text=True, timeout=120).stdout


def _version(bundle: Bundle, version: int, **flow: str) -> Bundle:
    """The bundle with another version and other values of `flow` in its manifest."""
    manifest = type(bundle.manifest)()
    manifest.CopyFrom(bundle.manifest)
    manifest.version = version
    for name, value in flow.items():
        setattr(manifest.flow, name, value)
    return replace(bundle, manifest=manifest)


def _files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


# The files


def test_a_bundle_becomes_two_models_with_its_graphs_byte_for_byte(bundle: Bundle, tmp_path: Path) -> None:
    written = write_triton(bundle, tmp_path / "new" / "triton")
    assert written == [tmp_path / "new" / "triton" / name / "1" for name in _GRAPHS]
    assert _files(tmp_path) == {
        f"new/triton/{name}/{file}" for name in _GRAPHS for file in ("config.pbtxt", "1/model.onnx")
    }
    for folder, graph in zip(written, _GRAPHS.values(), strict=True):
        assert (folder / "model.onnx").read_bytes() == bundle.read(graph)


def test_other_versions_are_kept_and_the_last_one_written_is_served(
    bundle: Bundle, triton_repository: Path
) -> None:
    for version in (3, 2):  # an older version, too: a rollback
        write_triton(_version(bundle, version), triton_repository)
        for name in _GRAPHS:
            read = _configuration(triton_repository / name)
            assert read["version_policy"] == {"specific": {"versions": [str(version)]}}
            assert read["parameters"]["version"] == {"string_value": str(version)}
    for name in _GRAPHS:
        kept = {entry.name for entry in (triton_repository / name).iterdir()}
        assert kept == {"1", "2", "3", "config.pbtxt"}


def test_the_same_bundle_can_be_written_again(bundle: Bundle, triton_repository: Path) -> None:
    (triton_repository / "digits_reverse" / "config.pbtxt").unlink()
    before = _files(triton_repository)
    write_triton(bundle, triton_repository)
    assert _files(triton_repository) == before | {"digits_reverse/config.pbtxt"}


@pytest.mark.parametrize("content", ["another model", None])
def test_another_model_under_the_same_version_is_refused(
    bundle: Bundle, tmp_path: Path, content: str | None
) -> None:
    folder = tmp_path / "digits_reverse" / "1"
    folder.mkdir(parents=True)
    if content:
        (folder / "model.onnx").write_text(content)
    before = _files(tmp_path)
    with pytest.raises(ExportError, match=r"digits_reverse/1 exists and contains another model; remove it"):
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


def test_an_interruption_leaves_the_repository_as_it_was(
    bundle: Bundle, triton_repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {name: (triton_repository / name).read_bytes() for name in _files(triton_repository)}

    def interrupted(*_: Path) -> None:
        assert len(_files(triton_repository)) == len(before) + 4, "all files are staged"
        raise KeyboardInterrupt

    monkeypatch.setattr(glowserve_export.triton, "publish_directory", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_triton(_version(bundle, 2), triton_repository)
    assert {name: (triton_repository / name).read_bytes() for name in _files(triton_repository)} == before
    assert {entry.name for entry in triton_repository.iterdir()} == set(_GRAPHS)


# The configuration


@pytest.mark.parametrize("name", _GRAPHS)
def test_tritons_schema_reads_the_configuration(
    name: str, bundle: Bundle, configuration: Callable[[str], dict[str, Any]]
) -> None:
    read = configuration(name)
    assert (read["name"], read["backend"], read["max_batch_size"]) == (name, "onnxruntime", 32)
    assert read["version_policy"] == {"specific": {"versions": ["1"]}}
    batching = read["dynamic_batching"]
    assert batching == {"preferred_batch_size": [8, 32], "max_queue_delay_microseconds": "1000"}
    assert read["instance_group"] == [{"count": 1}]  # KIND_AUTO is the default
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
def test_every_tensor_has_the_name_type_and_shape_of_the_graph(
    name: str, triton_repository: Path, configuration: Callable[[str], dict[str, Any]]
) -> None:
    session = onnxruntime.InferenceSession(triton_repository / name / "1" / "model.onnx")
    read = configuration(name)
    for ours, theirs in ((read["input"], session.get_inputs()), (read["output"], session.get_outputs())):
        assert [tensor["name"] for tensor in ours] == [tensor.name for tensor in theirs]
        for our, their in zip(ours, theirs, strict=True):
            assert _TYPES[our["data_type"]] == their.type
            assert ["N", *_dims_of_the_graph(our)] == their.shape
            # Triton has no tensor without dims: [N] is reshaped to [N, 1].
            assert our["dims"] == (["1"] if their.shape == ["N"] else [str(dim) for dim in their.shape[1:]])


@pytest.mark.parametrize("name", _GRAPHS)
def test_the_graphs_run_with_every_configured_batch_size(
    name: str,
    triton_repository: Path,
    configuration: Callable[[str], dict[str, Any]],
    rng: np.random.Generator,
) -> None:
    session = onnxruntime.InferenceSession(triton_repository / name / "1" / "model.onnx")
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


# A client


def test_the_documented_client_receives_the_results_of_the_service(
    bundle: Bundle, triton_repository: Path, digits: UInt8Array, embedded: Any, tmp_path: Path
) -> None:
    np.save(tmp_path / "images.npy", digits[:20])
    _run("run-documented-client", triton_repository, bundle.path, tmp_path)
    answer = np.load(tmp_path / "answer.npz")
    scores = embedded.score(digits[:20], seed=7)
    np.testing.assert_allclose(answer["bits_per_dim"], scores.bits_per_dim, rtol=1e-6)
    np.testing.assert_allclose(answer["percentile"], scores.percentile, atol=1e-6)
    samples = embedded.sample(5, seed=3, temperature=0.8)
    np.testing.assert_array_equal(answer["samples"], samples.images)
    assert str(answer["error"]) == "temperature 3e+38 is too high: a sample is not finite"
