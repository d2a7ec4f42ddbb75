"""Lays a bundle out for NVIDIA's Triton Inference Server, as two models of its ONNX Runtime backend.

    TRITON_REPOSITORY/
      NAME_forward/config.pbtxt, VERSION/model.onnx     forward.onnx of the bundle
      NAME_reverse/config.pbtxt, VERSION/model.onnx     reverse.onnx of the bundle

docs/triton.md says what a client of Triton has to do itself. A model has one config.pbtxt, Triton's `ModelConfig` as
protobuf text, for all of its versions. It names the version that it describes, and Triton serves that version only.

Shapes: Triton's `dims` do not include N, the size of a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx
from onnx import TensorProto

from glowserve.files import atomic_write, publish_directory, staging_directory
from glowserve.runtime.repository import FORWARD, REVERSE, Bundle
from glowserve_export.errors import ExportError

_CONFIG, _GRAPH = "config.pbtxt", "model.onnx"
# An underscore, since Triton takes a part of the name after a dot for the name of a backend.
_SUFFIXES = {FORWARD: "_forward", REVERSE: "_reverse"}
_TYPES = {"UINT8": "TYPE_UINT8", "FLOAT": "TYPE_FP32", "INT64": "TYPE_INT64"}
_MAX_BATCH_SIZE = 32
# Beyond 8 images, a larger batch gains little.
_PREFERRED_BATCH_SIZES = (8, _MAX_BATCH_SIZE)
_MAX_QUEUE_DELAY_MICROSECONDS = 1000

# Triton ignores GPU accelerators where there is no GPU. TF32 loses too much precision for likelihoods; for TensorRT it
# can only be turned off in the environment (docs/triton.md). TensorRT's engine cache is off: it would have to be
# cleared whenever the model changes.
_TENSORRT = """\
      {
        name: "tensorrt"
        parameters { key: "precision_mode" value: "FP32" }
      },
"""
_CONFIGURATION = """\
name: "{name}"
backend: "onnxruntime"
version_policy {{ specific {{ versions: [ {version} ] }} }}
max_batch_size: {max_batch_size}
{tensors}
dynamic_batching {{
  preferred_batch_size: [ {preferred_batch_sizes} ]
  max_queue_delay_microseconds: {max_queue_delay_microseconds}
}}
instance_group [ {{ kind: KIND_AUTO count: 1 }} ]
optimization {{
  execution_accelerators {{
    gpu_execution_accelerator [
{tensorrt}      {{
        name: "cuda"
        parameters {{ key: "use_tf32" value: "0" }}
      }}
    ]
  }}
}}
{warmups}
{parameters}
"""


def write_triton(bundle: Bundle, repository: Path) -> list[Path]:
    """Writes a bundle's graphs into a Triton model repository, as NAME_forward and NAME_reverse.

    Other versions in the repository are kept, and Triton serves this one from now on. Triton never sees an incomplete
    version.

    Args:
        bundle: the bundle.
        repository: Triton's model repository; made if needed.

    Returns:
        The two VERSION folders.

    Raises:
        glowserve.runtime.errors.BundleError: a graph is missing or damaged; nothing was written.
        ExportError: the repository has another model under this version; nothing was written.
    """
    version = bundle.manifest.version
    graphs = {f"{bundle.manifest.model}{suffix}": bundle.read(file) for file, suffix in _SUFFIXES.items()}
    for name, graph in graphs.items():
        _check_same_model(repository / name / str(version), graph)
    repository.mkdir(parents=True, exist_ok=True)
    with staging_directory(repository) as staging:
        for name, graph in graphs.items():
            folder = staging / name / str(version)
            folder.mkdir(parents=True)
            (folder / _GRAPH).write_bytes(graph)
            (staging / name / _CONFIG).write_text(_configuration(name, bundle, graph))
        for name in graphs:
            _publish(staging / name, version, repository / name)
    return [repository / name / str(version) for name in graphs]


def _check_same_model(folder: Path, graph: bytes) -> None:
    if folder.exists() and not ((folder / _GRAPH).is_file() and (folder / _GRAPH).read_bytes() == graph):
        raise ExportError(
            f"{folder} exists and contains another model; remove it, or write to another Triton repository"
        )


def _publish(staged: Path, version: int, model: Path) -> None:
    """Publishes a new model as a whole; of a known model first the version, then the configuration that names it."""
    if not model.exists():
        publish_directory(staged, model)
        return
    if not (model / str(version)).exists():
        publish_directory(staged / str(version), model / str(version))
    with atomic_write(model / _CONFIG) as file:
        file.write((staged / _CONFIG).read_bytes())


def _configuration(name: str, bundle: Bundle, graph: bytes) -> str:
    """Triton's ModelConfig, as protobuf text."""
    described = onnx.load_model_from_string(graph).graph
    manifest = bundle.manifest
    parameters = {
        # HEURISTIC: the exhaustive search would run again for every batch size. It is a parameter of the model because
        # the backend ignores it among those of the accelerator.
        "cudnn_conv_algo_search": "1",
        "model": manifest.model,
        "version": str(manifest.version),
        "n_bits": str(manifest.image.n_bits),
        "precision": manifest.flow.precision or "fp32",
        "log_det_constant": repr(manifest.log_det_constant),
    }
    return _CONFIGURATION.format(
        name=name,
        version=manifest.version,
        max_batch_size=_MAX_BATCH_SIZE,
        tensors=_tensors("input", described.input) + "\n" + _tensors("output", described.output),
        preferred_batch_sizes=", ".join(map(str, _PREFERRED_BATCH_SIZES)),
        max_queue_delay_microseconds=_MAX_QUEUE_DELAY_MICROSECONDS,
        # TensorRT would lower the precision of the whole graph, and the bundle lowers that of the networks only.
        tensorrt=_TENSORRT if parameters["precision"] == "fp32" else "",
        warmups="\n".join(_warmup(size, described.input) for size in (1, _MAX_BATCH_SIZE)),
        parameters="\n".join(
            f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}'
            for key, value in parameters.items()
        ),
    )


def _tensors(kind: str, tensors: Sequence[onnx.ValueInfoProto]) -> str:
    """Inputs or outputs. Triton has no tensors of shape [N]; they become [N, 1]."""
    lines = []
    for tensor in tensors:
        dims = _dims(tensor)
        shape = f"dims: [ {dims} ]" if dims else "dims: [ 1 ] reshape { shape: [ ] }"
        lines.append(f'{kind} [ {{ name: "{tensor.name}" data_type: {_type(tensor)} {shape} }} ]')
    return "\n".join(lines)


def _warmup(batch_size: int, inputs: Sequence[onnx.ValueInfoProto]) -> str:
    """A batch of zeros that runs before the first request: TensorRT's engine covers the sizes between its warm-ups."""
    tensors = "\n".join(
        f'  inputs {{ key: "{tensor.name}" '
        f"value {{ data_type: {_type(tensor)} dims: [ {_dims(tensor) or 1} ] zero_data: true }} }}"
        for tensor in inputs
    )
    return f'model_warmup {{\n  name: "batch of {batch_size}"\n  batch_size: {batch_size}\n{tensors}\n}}'


def _type(tensor: onnx.ValueInfoProto) -> str:
    return _TYPES[TensorProto.DataType.Name(tensor.type.tensor_type.elem_type)]


def _dims(tensor: onnx.ValueInfoProto) -> str:
    return ", ".join(str(dim.dim_value) for dim in tensor.type.tensor_type.shape.dim[1:])
