"""Runs the graphs of a bundle in ONNX Runtime, on NumPy arrays.

Shapes: N images, H W C, D = H * W * C, L levels.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from glowserve.images import UInt8Array
from glowserve.runtime.buffers import BoundSession
from glowserve.runtime.config import RuntimeConfig
from glowserve.runtime.errors import BundleError, DeviceError, MissingFileError
from glowserve.runtime.graphs import check_graph
from glowserve.runtime.repository import EXPLAIN, FORWARD, REVERSE, Bundle
from glowserve.runtime.sessions import Cancellation, Graph, Widths, has_cuda, open_sessions

Float32Array = npt.NDArray[np.float32]
Int64Array = npt.NDArray[np.int64]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Forward:
    """The output of the forward graph for N images."""

    log_likelihood: Float32Array
    """Log-likelihoods of the discrete images in nats, [N]."""

    latent: Float32Array
    """Latents, [N, D]."""

    log_prior: Float32Array
    """Log-densities of the latents in nats, by level, [N, L]."""

    log_det: Float32Array
    """Log-determinants in nats, by level, [N, L]; without the constant of the manifest."""

    log_posterior: Float32Array | None = None
    """log p(c | x) of the K classes of a class-conditional model, [N, K]; None of other models."""


@dataclass(frozen=True)
class Reverse:
    """The output of the reverse graph for N latents."""

    image: UInt8Array
    """Images, [N, H, W, C]."""

    pixels: Float32Array
    """The images before rounding and clipping, in bins, [N, H, W, C]. Where the output of the flow is not finite, the
    graph makes the pixel NaN or infinite, also if it is the output of a sigmoid, which would hide that."""


@dataclass(frozen=True)
class Placement:
    """How many nodes of a graph one execution provider runs."""

    graph: str
    """The graph's file, such as "forward.onnx"."""

    provider: str
    """ONNX Runtime's name of the execution provider, such as "CUDAExecutionProvider"."""

    nodes: int
    """The number of nodes, counted before ONNX Runtime fuses nodes."""


_DEFAULTS = RuntimeConfig()
_UINT8, _FLOAT32, _INT64 = "tensor(uint8)", "tensor(float)", "tensor(int64)"


class Engine:
    """Runs a bundle. Threads may share an engine.

    Args:
        bundle: the bundle.
        config: the device, its threads and its memory.
        cancellation: ends the opening of the first two graphs, and all runs.

    Raises:
        BundleError: a graph is damaged, differs from what the manifest says, has operators that are never exported,
            fails in its first run on a GPU, or is int8, which CUDA does not run.
        DeviceError: the device cannot be used.
    """

    widens: bool
    """Whether it has sessions of their own for wide runs; else these are as others."""

    device: str
    """"cpu", "cuda" or "tensorrt"."""

    placements: list[Placement]
    """The execution providers of forward.onnx and reverse.onnx; for each graph, the one that runs the most nodes
    first."""

    def __init__(
        self,
        bundle: Bundle,
        config: RuntimeConfig = _DEFAULTS,
        cancellation: Cancellation | None = None,
    ) -> None:
        cancellation = cancellation or Cancellation()
        config = _for_precision(bundle, config)
        self.device, sessions = _open(bundle, (FORWARD, REVERSE), config, cancellation)
        self.widens = self.device == "cpu" and config.wide_threads > 0
        (forward, _), (reverse, _) = sessions
        self.placements = [*_placements(FORWARD, forward), *_placements(REVERSE, reverse)]
        self._bundle, self._config = bundle, config
        self._explain: Widths | None = None
        self._opening, self._end_opening = threading.Lock(), Cancellation()
        self._bound: list[BoundSession] = []
        self._options = [cancellation.run_options] if self.device == "cpu" else []
        if self.device != "cpu":
            try:
                sessions = [self._bind(session, config.batch_sizes) for session, _ in sessions]
            except BundleError:
                self.close()
                raise
        self._forward, self._reverse = sessions

    def _bind(self, session: Any, sizes: Sequence[int]) -> Widths:
        try:
            bound = BoundSession(session, "cuda", sizes, capture=self.device == "cuda")
        except Exception as error:  # ONNX Runtime has no public base class of its errors
            raise BundleError(f"bundle {self._bundle.path}: its first run failed: {error}") from error
        self._bound.append(bound)
        return Widths(bound, bound)

    def forward(self, images: UInt8Array, noise: Float32Array, *, wide: bool = False) -> Forward:
        """Computes log-likelihoods and latents of images.

        Args:
            images: uint8 [N, H, W, C].
            noise: the dequantization noise in [0, 1), float32 [N, H, W, C].
            wide: whether the run has the machine to itself, and may use all cores.
        """
        names = ["log_likelihood", "latent", "log_prior", "log_det"]
        if self._bundle.classes:
            names.append("log_posterior")
        return Forward(*self._forward[wide].run(names, {"image": images, "noise": noise}, *self._options))

    def reverse(
        self, latent: Float32Array, classes: Int64Array | None = None, *, wide: bool = False
    ) -> Reverse:
        """Decodes latents to images.

        Args:
            latent: float32 [N, D].
            classes: int64 [N]: the classes of standard normal latents, by number, under a class-conditional model; -1
                for latents of `forward`. None: all are.
            wide: as in `forward`.
        """
        feeds: dict[str, npt.NDArray[Any]] = {"latent": latent}
        if self._bundle.classes:
            feeds["class"] = np.full(len(latent), -1, np.int64) if classes is None else classes
        return Reverse(*self._reverse[wide].run(["image", "pixels"], feeds, *self._options))

    def explain(self, images: UInt8Array, noise: Float32Array, *, wide: bool = False) -> Float32Array:
        """Computes the log-likelihoods of images by place, in nats, float32 [N, H, W]: their sum is the log-likelihood.

        The first call opens the graph, which takes as long as the forward graph took, and as much memory.

        Args:
            images: uint8 [N, H, W, C].
            noise: the dequantization noise in [0, 1), float32 [N, H, W, C].
            wide: as in `forward`.

        Raises:
            MissingFileError: the bundle has no such graph.
            BundleError: the graph is damaged, or differs from what the manifest says.
            DeviceError: the device can no longer be used.
        """
        feeds = {"image": images, "noise": noise}
        terms: Float32Array = self._explain_sessions()[wide].run(["terms"], feeds, *self._options)[0]
        return terms

    def _explain_sessions(self) -> Widths:
        with self._opening:
            if self._explain is None:
                if not self._bundle.has(EXPLAIN):
                    raise missing_file(self._bundle, EXPLAIN)
                # On a GPU without buffers, whose memory few calls would use; and never by TensorRT, which takes minutes
                # for a graph.
                device = "cpu" if self.device == "cpu" else "cuda"
                config = replace(self._config, device=device, batch_sizes=())
                _, (sessions,) = _open(self._bundle, (EXPLAIN,), config, self._end_opening)
                self._explain = sessions if device == "cpu" else self._bind(sessions.narrow, ())
            return self._explain

    def close(self) -> None:
        """Frees its memory on a GPU, after the current runs, and ends the opening of a graph. No run may follow."""
        self._end_opening()
        with self._opening:
            while self._bound:
                self._bound.pop().close()


def missing_file(bundle: Bundle, name: str) -> MissingFileError:
    """The error of a bundle that was exported without a file: by an older version of glowserve, say."""
    return MissingFileError(
        f"{bundle.manifest.model} version {bundle.manifest.version} has no {name}, without which no likelihood can be "
        f"explained; `glowserve export CHECKPOINT REPOSITORY/{bundle.manifest.model}` writes a version that has it"
    )


def _open(
    bundle: Bundle, names: Sequence[str], config: RuntimeConfig, cancellation: Cancellation
) -> tuple[str, list[Widths]]:
    """The device, and the sessions of each of the named graphs.

    Raises:
        BundleError: see `Engine`.
        DeviceError: see `Engine`.
    """
    graphs = [
        Graph(
            _read_graph(bundle, name),
            {tensor: shape for tensor, (_, shape) in _tensors(bundle, name)["takes"].items()},
        )
        for name in names
    ]
    try:
        device, sessions = open_sessions(graphs, config, cancellation)
    except DeviceError:
        raise
    except Exception as error:  # ONNX Runtime has no public base class of its errors
        raise BundleError(f"bundle {bundle.path}: ONNX Runtime cannot load it: {error}") from error
    for name, (session, _) in zip(names, sessions, strict=True):
        _check_tensors(bundle, session, name)
    return device, sessions


def _for_precision(bundle: Bundle, config: RuntimeConfig) -> RuntimeConfig:
    """The configuration; for the CPU if the device is "auto" and CUDA does not run the bundle's precision.

    Raises:
        BundleError: CUDA does not run the bundle's precision, and the device is "cuda".
    """
    wants_cuda = config.device == "cuda" or (config.device == "auto" and has_cuda())
    if bundle.manifest.flow.precision != "int8" or not wants_cuda:
        return config
    why = f"bundle {bundle.path}: it is int8, which CUDA does not run in ONNX Runtime"
    if config.device == "cuda":
        raise BundleError(f"{why}; export the model in fp16 or fp32, or use device 'auto' or 'cpu'")
    log.warning("running on the CPU: %s", why)
    return replace(config, device="cpu")


def _read_graph(bundle: Bundle, name: str) -> bytes:
    data = bundle.read(name)
    check_graph(data, f"bundle {bundle.path}: {name}")
    return data


def _check_tensors(bundle: Bundle, session: Any, graph: str) -> None:
    """Checks names, types and shapes of a graph's inputs and outputs; N may have any name, but no fixed size."""
    found = {
        kind: {each.name: (each.type, list(each.shape or [0])) for each in tensors}
        for kind, tensors in (("takes", session.get_inputs()), ("returns", session.get_outputs()))
    }
    for kind, expected in _tensors(bundle, graph).items():
        rows = {
            name: (kind, shape[1:])
            for name, (kind, shape) in found[kind].items()
            if not isinstance(shape[0], int)
        }
        if rows != expected:
            raise BundleError(
                f"bundle {bundle.path}: {graph} {kind} {found[kind]}, which is not what the manifest says; export the "
                "model again"
            )


def _tensors(bundle: Bundle, graph: str) -> dict[str, dict[str, tuple[str, list[int]]]]:
    """The inputs and outputs of a graph by name: their types, and their shapes without N."""
    image, latent, levels = (
        list(bundle.shape),
        [bundle.manifest.image.latent_size],
        [bundle.manifest.flow.levels],
    )
    classes = len(bundle.classes)
    if graph == REVERSE:
        return {
            "takes": {"latent": (_FLOAT32, latent)} | ({"class": (_INT64, [])} if classes else {}),
            "returns": {"image": (_UINT8, image), "pixels": (_FLOAT32, image)},
        }
    takes = {"image": (_UINT8, image), "noise": (_FLOAT32, image)}
    if graph == EXPLAIN:
        return {"takes": takes, "returns": {"terms": (_FLOAT32, image[:2])}}
    return {
        "takes": takes,
        "returns": {
            "log_likelihood": (_FLOAT32, []),
            "latent": (_FLOAT32, latent),
            "log_prior": (_FLOAT32, levels),
            "log_det": (_FLOAT32, levels),
            **({"log_posterior": (_FLOAT32, [classes])} if classes else {}),
        },
    }


def _placements(graph: str, session: Any) -> list[Placement]:
    """The execution providers of a graph, the one that runs the most nodes first."""
    nodes = Counter[str]()
    for subgraph in session.get_provider_graph_assignment_info():
        nodes[subgraph.ep_name] += len(subgraph.get_nodes())
    return [Placement(graph, provider, count) for provider, count in nodes.most_common()]
