"""Two ONNX Runtime sessions, one each way; NumPy in and out. It knows no gRPC and no event loop.

Shapes: N images, H W C, D = H * W * C, L levels.
"""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from glowserve.images import UInt8Array
from service.config import DEVICES
from service.errors import BundleError, DeviceError
from service.repository import FORWARD, REVERSE, Bundle

Float32Array = npt.NDArray[np.float32]

_CPU, _CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
# TF32 keeps ten bits of mantissa, too few for a likelihood. An exhaustive search for the fastest convolution
# is paid again for every batch size.
_CUDA_OPTIONS = {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Forward:
    """What the forward graph says of N images."""

    log_likelihood: Float32Array
    """Nats of the discrete image, [N]."""

    latent: Float32Array
    """[N, D]."""

    log_prior: Float32Array
    """Nats by level, [N, L]."""

    log_det: Float32Array
    """Nats by level, [N, L]."""


@dataclass(frozen=True)
class Reverse:
    """What the reverse graph makes of N latents."""

    image: UInt8Array
    """[N, H, W, C]."""

    pixels: Float32Array
    """Before rounding and clipping, in bins, [N, H, W, C]."""


@dataclass(frozen=True)
class Placement:
    """Where ONNX Runtime runs a graph, or a part of it."""

    graph: str
    """The name of its file."""

    provider: str
    """As ONNX Runtime calls it."""

    nodes: int
    """How many of the graph's nodes it runs, before they are fused."""


class Engine:
    """Runs a bundle. Calls from several threads at once are fine.

    Args:
        bundle: what to run.
        device: "cuda", "cpu", or "auto": the GPU if it works, else the CPU.
        threads: CPU threads inside one run; 0 for one a core.

    Raises:
        BundleError: a graph is damaged.
        DeviceError: there is no such device, or it cannot be used.
    """

    def __init__(self, bundle: Bundle, *, device: str = "auto", threads: int = 0) -> None:
        if device not in DEVICES:
            raise DeviceError(f"device is {device!r}; it must be one of {', '.join(DEVICES)}")
        graphs = [bundle.read(name) for name in (FORWARD, REVERSE)]
        try:
            self.device, sessions = _open(graphs, device, threads)
        except DeviceError:
            raise
        except Exception as error:  # ONNX Runtime has no public base class of its errors
            raise BundleError(f"bundle {bundle.path}: ONNX Runtime cannot load it: {error}") from error
        self._forward, self._reverse = sessions
        self.placements = [
            placement
            for graph, session in ((FORWARD, self._forward), (REVERSE, self._reverse))
            for placement in _placements(graph, session)
        ]
        height, width, channels = bundle.shape
        size = bundle.manifest.image.latent_size
        _check_input(bundle, self._forward, FORWARD, "image", [height, width, channels])
        _check_input(bundle, self._reverse, REVERSE, "latent", [size])

    def forward(self, images: UInt8Array, noise: Float32Array) -> Forward:
        """Log-likelihoods and latents of images.

        Args:
            images: uint8 [N, H, W, C].
            noise: dequantization noise in [0, 1), float32 [N, H, W, C].
        """
        names = ["log_likelihood", "latent", "log_prior", "log_det"]
        return Forward(*self._forward.run(names, {"image": images, "noise": noise}))

    def reverse(self, latent: Float32Array) -> Reverse:
        """Images of latents, float32 [N, D]."""
        return Reverse(*self._reverse.run(["image", "pixels"], {"latent": latent}))


def _check_input(bundle: Bundle, session: Any, graph: str, name: str, row: list[int]) -> None:
    shapes = {given.name: given.shape for given in session.get_inputs()}
    if shapes.get(name, [])[1:] != row:
        raise BundleError(
            f"bundle {bundle.path}: {graph} takes {shapes}, which is not what the manifest says; export the model again"
        )


def _placements(graph: str, session: Any) -> list[Placement]:
    """The provider that runs most of it first."""
    nodes = Counter[str]()
    for subgraph in session.get_provider_graph_assignment_info():
        nodes[subgraph.ep_name] += len(subgraph.get_nodes())
    return [Placement(graph, provider, count) for provider, count in nodes.most_common()]


def _open(graphs: list[bytes], device: str, threads: int) -> tuple[str, list[Any]]:
    """The device that is used, "cuda" or "cpu", and a session for each graph."""
    if device == "cpu" or (device == "auto" and _CUDA not in onnxruntime.get_available_providers()):
        return "cpu", [onnxruntime.InferenceSession(g, _options(threads), providers=[_CPU]) for g in graphs]
    try:
        return "cuda", [_cuda_session(graph, threads) for graph in graphs]
    except DeviceError as error:
        if device == "cuda":
            raise
        log.warning("running on the CPU: %s", error)
        return _open(graphs, "cpu", threads)


def _cuda_session(graph: bytes, threads: int) -> Any:
    if _CUDA not in onnxruntime.get_available_providers():
        raise DeviceError(
            "device is 'cuda', and the onnxruntime that is installed has no CUDA; install glowserve[gpu] in place of "
            "glowserve[cpu], or use device 'cpu'"
        )
    if hasattr(onnxruntime, "preload_dlls"):
        onnxruntime.preload_dlls()
    options = _options(threads)
    # Left to itself, ONNX Runtime falls back to the CPU without a word to its caller.
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    try:
        return onnxruntime.InferenceSession(graph, options, providers=[(_CUDA, _CUDA_OPTIONS)])
    except Exception as error:  # see Engine
        raise DeviceError(f"device is 'cuda', and ONNX Runtime cannot use it: {error}") from error


def _options(threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    # Without it, int8 products saturate in 16 bits on x86 that has no VNNI.
    options.add_session_config_entry("session.x64quantprecision", "1")
    return options
