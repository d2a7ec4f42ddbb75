"""A bundle laid out for NVIDIA's Triton Inference Server: two models of its ONNX Runtime backend.

    TRITON_REPOSITORY/
      NAME_forward/config.pbtxt, VERSION/model.onnx     what forward.onnx is in the bundle
      NAME_reverse/config.pbtxt, VERSION/model.onnx     what reverse.onnx is

The graphs are the bundle's, byte for byte, and go through the same runtime. What a client has to do by itself there is
in docs/triton.md. The configuration is Triton's `ModelConfig` as protobuf text; a model has one for all of its
versions, so that it names the one version that it describes, and Triton serves that one.

Shapes: Triton's `dims` leave out N, the images in a batch.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import onnx
from onnx import TensorProto

from glowserve.files import atomic_write, sync_directory
from glowserve.runtime.repository import FORWARD, REVERSE, Bundle
from glowserve_export.errors import ExportError

_CONFIG, _GRAPH = "config.pbtxt", "model.onnx"
# Triton takes what follows a dot in a name for a backend; hence the underscore.
_ENDINGS = {FORWARD: "forward", REVERSE: "reverse"}
_TYPES = {"UINT8": "TYPE_UINT8", "FLOAT": "TYPE_FP32"}
_MAX_BATCH_SIZE = 32
# From 8 images on, a larger batch gains little.
_PREFERRED_BATCH_SIZES = (8, _MAX_BATCH_SIZE)
_MAX_QUEUE_DELAY_MICROSECONDS = 1000

# Without a GPU, accelerators do not count. TF32 keeps too little of a likelihood; TensorRT's use of it can only be
# switched off from outside (docs/triton.md). TensorRT's engine cache stays off: it would have to be cleared whenever
# a model changes.
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

    Other versions that are there stay, but from now on Triton serves this one. Nothing half-written is ever seen.

    Args:
        bundle: what to write.
        repository: the folder that Triton is to read; made if needed.

    Returns:
        The two VERSION folders.

    Raises:
        glowserve_service.errors.BundleError: a graph is missing or damaged; nothing was written.
        ExportError: this version is there already, and is another model; nothing was written.
    """
    version = bundle.manifest.version
    graphs = {f"{bundle.manifest.model}_{ending}": bundle.read(file) for file, ending in _ENDINGS.items()}
    for name, graph in graphs.items():
        _refuse_another(repository / name / str(version), graph)
    repository.mkdir(parents=True, exist_ok=True)
    with _staging(repository) as staging:
        for name, graph in graphs.items():
            _write_model(staging / name, version, graph, _configuration(name, bundle, graph))
        for name in graphs:
            _publish(staging / name, version, repository / name)
    return [repository / name / str(version) for name in graphs]


def _refuse_another(folder: Path, graph: bytes) -> None:
    if folder.exists() and not ((folder / _GRAPH).is_file() and (folder / _GRAPH).read_bytes() == graph):
        raise ExportError(
            f"{folder} is there already, and is not this model; remove it, or write to another Triton repository"
        )


def _configuration(name: str, bundle: Bundle, graph: bytes) -> str:
    """Triton's ModelConfig, as protobuf text."""
    described = onnx.load_model_from_string(graph).graph
    manifest = bundle.manifest
    parameters = {
        # HEURISTIC, since an exhaustive search is paid again for every batch size; said here, since the backend
        # does not listen to what the accelerator says of it.
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
        # Its lower precisions are for all of a graph, and a bundle's are for the coupling networks alone.
        tensorrt=_TENSORRT if parameters["precision"] == "fp32" else "",
        warmups="\n".join(_warmup(size, described.input) for size in (1, _MAX_BATCH_SIZE)),
        parameters="\n".join(
            f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}'
            for key, value in parameters.items()
        ),
    )


def _tensors(kind: str, tensors: Sequence[onnx.ValueInfoProto]) -> str:
    """Inputs or outputs. Triton has no tensor of [N] alone: it becomes [N, 1]."""
    lines = []
    for tensor in tensors:
        dims = _dims(tensor)
        shape = f"dims: [ {dims} ]" if dims else "dims: [ 1 ] reshape { shape: [ ] }"
        lines.append(f'{kind} [ {{ name: "{tensor.name}" data_type: {_type(tensor)} {shape} }} ]')
    return "\n".join(lines)


def _warmup(batch_size: int, inputs: Sequence[onnx.ValueInfoProto]) -> str:
    """A batch of zeros before the first request: TensorRT builds its engine for all sizes that it has seen."""
    tensors = "\n".join(
        f'  inputs {{ key: "{tensor.name}" '
        f"value {{ data_type: {_type(tensor)} dims: [ {_dims(tensor)} ] zero_data: true }} }}"
        for tensor in inputs
    )
    return f'model_warmup {{\n  name: "batch of {batch_size}"\n  batch_size: {batch_size}\n{tensors}\n}}'


def _type(tensor: onnx.ValueInfoProto) -> str:
    return _TYPES[TensorProto.DataType.Name(tensor.type.tensor_type.elem_type)]


def _dims(tensor: onnx.ValueInfoProto) -> str:
    return ", ".join(str(dim.dim_value) for dim in tensor.type.tensor_type.shape.dim[1:])


@contextmanager
def _staging(repository: Path) -> Iterator[Path]:
    """A folder in the repository that is gone at the end."""
    path = Path(tempfile.mkdtemp(prefix=".staging-", dir=repository))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _write_model(model: Path, version: int, graph: bytes, configuration: str) -> None:
    (model / str(version)).mkdir(parents=True)
    for path, data in (
        (model / str(version) / _GRAPH, graph),
        (model / _CONFIG, configuration.encode()),
    ):
        with atomic_write(path) as file:
            file.write(data)


def _publish(staged: Path, version: int, model: Path) -> None:
    """All at once where the model is new; else first the version, which Triton only reads once it is configured."""
    if not model.exists():
        staged.rename(model)
    else:
        if not (model / str(version)).exists():
            (staged / str(version)).rename(model / str(version))
        sync_directory(model)
        (staged / _CONFIG).replace(model / _CONFIG)
        sync_directory(model)
    sync_directory(model.parent)
