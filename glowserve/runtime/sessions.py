"""Opens ONNX Runtime sessions whose graphs run completely on one device, or raises an error.

ONNX Runtime's default is to run on the CPU if the GPU does not work, and to report that only in its own log.
"""

from __future__ import annotations

import ctypes
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from glowserve.cores import cores
from glowserve.runtime.config import Limits, RuntimeConfig
from glowserve.runtime.errors import DeviceError
from glowserve.runtime.gpu_turns import TURNS
from glowserve.runtime.ort import onnxruntime

CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
"""ONNX Runtime's names of the execution providers."""

# By device, in order: CUDA runs the nodes that TensorRT cannot run.
_PROVIDERS = {"cuda": (CUDA,), "tensorrt": (TENSORRT, CUDA)}
_LIBRARIES = {CUDA: "libonnxruntime_providers_cuda.so", TENSORRT: "libonnxruntime_providers_tensorrt.so"}
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Graph:
    """A graph to open."""

    data: bytes
    """The content of its file."""

    inputs: Mapping[str, Sequence[int]]
    """The shape of each input by name, without the axis N."""


class Widths(NamedTuple):
    """The sessions of a graph, by whether a run is wide; one and the same where wide runs have none of their own."""

    narrow: Any
    """For runs beside other runs."""

    wide: Any
    """For a run that has the machine to itself."""


class Cancellation:
    """Ends, from another thread, what opens sessions and what runs them on a CPU: it raises an error soon."""

    def __init__(self) -> None:
        self.run_options = onnxruntime.RunOptions()
        """Options of the runs."""
        self._options: list[Any] = []
        self._cancelled = False

    def __call__(self) -> None:
        """From now on, opening and running fails."""
        self._cancelled = self.run_options.terminate = True
        for options in self._options:
            options.set_load_cancellation_flag(True)

    def watch(self, options: Any) -> Any:
        """The options of a session, which this may end."""
        self._options.append(options)
        if self._cancelled:
            options.set_load_cancellation_flag(True)
        return options


def has_cuda() -> bool:
    """Whether the installed onnxruntime supports CUDA, with or without a GPU."""
    return CUDA in onnxruntime.get_available_providers()


def open_sessions(
    graphs: Sequence[Graph], config: RuntimeConfig, cancellation: Cancellation | None = None
) -> tuple[str, list[Widths]]:
    """Opens the sessions of each graph, all on one device.

    Args:
        graphs: the graphs.
        config: the device, its threads and its memory.
        cancellation: ends the opening.

    Returns:
        The device, "cpu", "cuda" or "tensorrt", and the sessions.

    Raises:
        DeviceError: the device is "cuda" or "tensorrt", and cannot be used.
    """
    cancellation = cancellation or Cancellation()
    if config.device == "cpu" or (config.device == "auto" and not has_cuda()):
        return "cpu", [_cpu_sessions(graph, config, cancellation) for graph in graphs]
    gpu = "cuda" if config.device == "auto" else config.device
    try:
        with TURNS.use():
            sessions = [_gpu_session(graph, gpu, config, cancellation) for graph in graphs]
            return gpu, [Widths(session, session) for session in sessions]
    except DeviceError as error:
        if config.device != "auto":
            raise
        log.warning("running on the CPU: %s", error)
        return open_sessions(graphs, replace(config, device="cpu"), cancellation)


def provider_options(
    provider: str, graph: Graph, config: RuntimeConfig, *, capture: bool = False
) -> dict[str, str]:
    """The options of an execution provider for a GPU.

    Args:
        provider: CUDA or TENSORRT.
        graph: the graph that it runs.
        config: the sizes of the buffers, and the memory.
        capture: whether CUDA captures runs as CUDA graphs.
    """
    memory = str(config.gpu_memory_mib * 2**20)
    most = max(config.batch_sizes, default=Limits.max_batch_size)
    if provider == CUDA:
        return {
            # TF32 has a mantissa of ten bits, too few for likelihoods.
            "use_tf32": "0",
            # An exhaustive search for the fastest convolution is repeated for every batch size.
            "cudnn_conv_algo_search": "HEURISTIC",
            # The arena grows by what a batch needs; by default it doubles.
            "arena_extend_strategy": "kSameAsRequested",
            "enable_cuda_graph": str(int(capture)),
            **({"gpu_mem_limit": memory} if config.gpu_memory_mib else {}),
        }
    # Options override environment variables such as ORT_TENSORRT_FP16_ENABLE.
    return {
        "trt_fp16_enable": "0",
        # The service writes no files.
        "trt_engine_cache_enable": "0",
        "trt_timing_cache_enable": "0",
        # One TensorRT engine for every batch size, optimized for the largest.
        "trt_profile_min_shapes": _shapes(graph, 1),
        "trt_profile_opt_shapes": _shapes(graph, most),
        "trt_profile_max_shapes": _shapes(graph, most),
        **({"trt_max_workspace_size": memory} if config.gpu_memory_mib else {}),
    }


def _shapes(graph: Graph, rows: int) -> str:
    """The shapes of a batch as TensorRT's options have them: NAME:AxBxC,..."""
    return ",".join(f"{name}:{'x'.join(map(str, (rows, *row)))}" for name, row in graph.inputs.items())


def _cpu_sessions(graph: Graph, config: RuntimeConfig, cancellation: Cancellation) -> Widths:
    def opened(threads: int) -> Any:
        options = cancellation.watch(_options(threads))
        return onnxruntime.InferenceSession(graph.data, options, providers=[CPU])

    narrow = opened(config.threads)
    return Widths(narrow, opened(config.wide_threads) if config.wide_threads else narrow)


def _gpu_session(graph: Graph, device: str, config: RuntimeConfig, cancellation: Cancellation) -> Any:
    providers = _PROVIDERS[device]
    if not set(providers) <= set(onnxruntime.get_available_providers()):
        raise DeviceError(
            f"device is {device!r}, and the onnxruntime that is installed has no "
            f"{'CUDA' if device == 'cuda' else 'TensorRT'}; install glowserve[gpu] in place of glowserve[cpu], or use "
            "device 'cpu'"
        )
    if device == "tensorrt":  # no option of the provider disables TF32
        os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")
    if hasattr(onnxruntime, "preload_dlls"):
        onnxruntime.preload_dlls()
    options = cancellation.watch(_options(config.threads))
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    # A CUDA graph contains the addresses of its buffers, so capturing needs buffers.
    capture = device == "cuda" and bool(config.batch_sizes)
    chosen = {name: provider_options(name, graph, config, capture=capture) for name in providers}
    try:
        session = onnxruntime.InferenceSession(
            graph.data,
            options,
            providers=list(chosen.items()),
            enable_fallback=0,  # otherwise a failed run makes ONNX Runtime continue on the CPU
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
    """The system's error for the first provider whose library cannot be loaded; "" if all can."""
    folder = Path(onnxruntime.__file__).parent / "capi"
    for provider in providers:
        try:
            ctypes.CDLL(str(folder / _LIBRARIES[provider]))
        except OSError as error:
            return str(error)
    return ""


def _options(threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    # ONNX Runtime's own default, one thread per core and bound to it, counts cores that this process may not use.
    few = cores()
    options.intra_op_num_threads = threads or (0 if few == os.cpu_count() else few)
    options.inter_op_num_threads = 1
    # Threads that have nothing to do wait actively so long, and then sleep: longer gains nothing, and takes cores from
    # other work.
    options.add_session_config_entry("session.intra_op.spin_duration_us", "100")
    # ONNX Runtime also raises its errors, and its log lines would break the format of the service's log.
    options.log_severity_level = 4
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    # Not ONNX Runtime's own format, which `check_graph` does not read.
    options.add_session_config_entry("session.load_model_format", "ONNX")
    # Without this, int8 products saturate at 16 bits on x86 processors without VNNI.
    options.add_session_config_entry("session.x64quantprecision", "1")
    return options
