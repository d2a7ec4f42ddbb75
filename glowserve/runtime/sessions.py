"""ONNX Runtime sessions on a device: all of a graph is there, or nothing is opened.

Left to itself, ONNX Runtime goes on without a GPU, and says so in a log of its own alone.
"""

from __future__ import annotations

import ctypes
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnxruntime

from glowserve.runtime.config import Limits, RuntimeConfig
from glowserve.runtime.errors import DeviceError
from glowserve.runtime.gpu_turns import TURNS

CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
"""As ONNX Runtime calls what runs a graph."""

# TensorRT leaves what it cannot run to CUDA.
_PROVIDERS = {"cuda": (CUDA,), "tensorrt": (TENSORRT, CUDA)}
_LIBRARIES = {CUDA: "libonnxruntime_providers_cuda.so", TENSORRT: "libonnxruntime_providers_tensorrt.so"}
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Graph:
    """What a session is made of."""

    data: bytes
    """Of its file."""

    inputs: Mapping[str, Sequence[int]]
    """The shape of a row of each, without the axis N."""


def has_cuda() -> bool:
    """Whether the onnxruntime that is installed knows CUDA, with a GPU or without."""
    return CUDA in onnxruntime.get_available_providers()


def open_sessions(graphs: Sequence[Graph], config: RuntimeConfig) -> tuple[str, list[Any]]:
    """Opens a session for each graph, all on one device.

    Args:
        graphs: what they run.
        config: where, and with what.

    Returns:
        The device that is used, "cpu", "cuda" or "tensorrt", and the sessions.

    Raises:
        DeviceError: it is a GPU, and cannot be used.
    """
    if config.device == "cpu" or (config.device == "auto" and not has_cuda()):
        options = _options(config.threads)
        return "cpu", [onnxruntime.InferenceSession(g.data, options, providers=[CPU]) for g in graphs]
    gpu = "cuda" if config.device == "auto" else config.device
    try:
        with TURNS.use():
            return gpu, [_gpu_session(graph, gpu, config) for graph in graphs]
    except DeviceError as error:
        if config.device != "auto":
            raise
        log.warning("running on the CPU: %s", error)
        return open_sessions(graphs, replace(config, device="cpu"))


def provider_options(
    provider: str, graph: Graph, config: RuntimeConfig, *, capture: bool = False
) -> dict[str, str]:
    """How CUDA or TensorRT runs a graph.

    Args:
        provider: which of them.
        graph: what it runs.
        config: the buffers that there are, and the memory.
        capture: whether CUDA captures the work that uses those buffers, to replay it.
    """
    memory = str(config.gpu_memory_mib * 2**20)
    most = max(config.batch_sizes, default=Limits.max_batch_size)
    if provider == CUDA:
        return {
            # TF32 keeps ten bits of mantissa, too few for a likelihood.
            "use_tf32": "0",
            # An exhaustive search for the fastest convolution is paid again for every batch size.
            "cudnn_conv_algo_search": "HEURISTIC",
            # Memory grows by what a batch needs, not twofold.
            "arena_extend_strategy": "kSameAsRequested",
            "enable_cuda_graph": str(int(capture)),
            **({"gpu_mem_limit": memory} if config.gpu_memory_mib else {}),
        }
    # With options given, variables such as ORT_TENSORRT_FP16_ENABLE do not count.
    return {
        "trt_fp16_enable": "0",
        # A service writes to no folder.
        "trt_engine_cache_enable": "0",
        "trt_timing_cache_enable": "0",
        # One engine for every batch size; the largest is the one that it is fastest for.
        "trt_profile_min_shapes": _shapes(graph, 1),
        "trt_profile_opt_shapes": _shapes(graph, most),
        "trt_profile_max_shapes": _shapes(graph, most),
        **({"trt_max_workspace_size": memory} if config.gpu_memory_mib else {}),
    }


def _shapes(graph: Graph, rows: int) -> str:
    """NAME:AxBxC,... of a batch."""
    return ",".join(f"{name}:{'x'.join(map(str, (rows, *row)))}" for name, row in graph.inputs.items())


def _gpu_session(graph: Graph, device: str, config: RuntimeConfig) -> Any:
    providers = _PROVIDERS[device]
    if not set(providers) <= set(onnxruntime.get_available_providers()):
        raise DeviceError(
            f"device is {device!r}, and the onnxruntime that is installed has no "
            f"{'CUDA' if device == 'cuda' else 'TensorRT'}; install glowserve[gpu] in place of glowserve[cpu], or use "
            "device 'cpu'"
        )
    if device == "tensorrt":  # it has no option of its own against TF32
        os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")
    if hasattr(onnxruntime, "preload_dlls"):
        onnxruntime.preload_dlls()
    options = _options(config.threads)
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    # A CUDA graph knows the addresses that it was captured with: it is for buffers that stay.
    capture = device == "cuda" and bool(config.batch_sizes)
    chosen = {name: provider_options(name, graph, config, capture=capture) for name in providers}
    try:
        session = onnxruntime.InferenceSession(
            graph.data,
            options,
            providers=list(chosen.items()),
            enable_fallback=0,  # nor later, when a run fails
        )
    except Exception as error:  # ONNX Runtime has no public base class of its errors
        reason = _missing_library(providers) or " ".join(str(error).split())
        raise DeviceError(
            f"device is {device!r}, and ONNX Runtime cannot use it: {reason}; see to the GPU and its driver, or use "
            "device 'cpu'"
        ) from error
    if session.get_providers()[0] != providers[0]:
        raise DeviceError(
            f"device is {device!r}, and ONNX Runtime runs {session.get_providers()[0]} in its place"
        )
    return session


def _missing_library(providers: Sequence[str]) -> str:
    """What the system's loader says of the first provider that it cannot load, if there is one."""
    folder = Path(onnxruntime.__file__).parent / "capi"
    for provider in providers:
        try:
            ctypes.CDLL(str(folder / _LIBRARIES[provider]))
        except OSError as error:
            return str(error)
    return ""


def _options(threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Errors are raised, too, and lines of its own do not fit into a log of another form.
    options.log_severity_level = 4
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    # Without it, int8 products saturate in 16 bits on x86 that has no VNNI.
    options.add_session_config_entry("session.x64quantprecision", "1")
    return options
