"""Small Glows with random weights, images for them, and ONNX Runtime for their graphs."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from glowserve_export.folded import FoldedGlow
from glowserve_training.model import Glow, GlowConfig

from glowserve.runtime.ort import onnxruntime

_ORTHOGONAL = {"parametrization": "orthogonal", "coupling_actnorm": True}
_VARIATIONAL = {"dequantization": "variational"}
_SIGMOID = {"coupling": "affine", "coupling_scale": "sigmoid"}
_TANH = {"coupling": "affine", "coupling_scale": "tanh"}
_SPLINE = {"coupling": "spline", "coupling_scale": "tanh"}
_ADDITIVE = {"coupling": "additive", "coupling_scale": "sigmoid"}
_LU, _PLAIN, _QLU = ({"parametrization": name} for name in ("lu", "plain", "qlu"))
_LOGIT = {"preprocessing": "logit"}
FORMAT_1_CASES: list[dict[str, Any]] = [
    {"channels": 1, "levels": 1, "n_bits": 8, **_SIGMOID, **_LU},
    {"channels": 1, "levels": 2, "n_bits": 2, **_SIGMOID, **_PLAIN},
    {"channels": 1, "levels": 3, "n_bits": 5, **_SIGMOID, **_LU},
    {"channels": 3, "levels": 1, "n_bits": 7, **_SIGMOID, **_PLAIN},
    {"channels": 3, "levels": 2, "n_bits": 4, **_SIGMOID, **_LU, "image_size": "4x12"},
    {"channels": 3, "levels": 3, "n_bits": 8, **_SIGMOID, **_LU},
    {"channels": 1, "levels": 1, "n_bits": 1, **_ADDITIVE, **_PLAIN},
    {"channels": 1, "levels": 2, "n_bits": 3, **_ADDITIVE, **_LU},
    {"channels": 3, "levels": 3, "n_bits": 6, **_ADDITIVE, **_LU},
    {"channels": 3, "levels": 2, "n_bits": 6, **_SIGMOID, **_ORTHOGONAL},
    {
        "channels": 1,
        "levels": 2,
        "n_bits": 4,
        **_SIGMOID,
        **_ORTHOGONAL,
        **_VARIATIONAL,
        "image_size": "12x4",
    },
    {"channels": 3, "levels": 1, "n_bits": 5, **_ADDITIVE, **_ORTHOGONAL, **_VARIATIONAL},
    {"channels": 3, "levels": 3, "n_bits": 8, **_SIGMOID, **_LU, **_VARIATIONAL},
    {"channels": 1, "levels": 1, "n_bits": 1, **_SIGMOID, **_PLAIN, **_VARIATIONAL},
]
"""Flows that format 1 of a bundle knows."""

CASES: list[dict[str, Any]] = [
    *FORMAT_1_CASES,
    {"channels": 1, "levels": 1, "n_bits": 8, **_TANH, **_QLU},
    {
        "channels": 3,
        "levels": 3,
        "n_bits": 5,
        **_TANH,
        **_ORTHOGONAL,
        "checkerboards": 1,
        "image_size": "8x16",
    },
    {"channels": 1, "levels": 2, "n_bits": 8, **_TANH, **_QLU, **_LOGIT, "checkerboards": 4, **_VARIATIONAL},
    {"channels": 3, "levels": 2, "n_bits": 3, **_TANH, **_LU, **_LOGIT, "checkerboards": 2},
    {"channels": 1, "levels": 3, "n_bits": 1, **_TANH, **_PLAIN, **_LOGIT, **_VARIATIONAL},
    {"channels": 3, "levels": 1, "n_bits": 8, **_SIGMOID, **_QLU, "checkerboards": 3, **_VARIATIONAL},
    {"channels": 1, "levels": 2, "n_bits": 8, **_SIGMOID, **_LU, **_LOGIT},
    {"channels": 3, "levels": 1, "n_bits": 6, **_ADDITIVE, **_QLU, **_LOGIT, "checkerboards": 2},
    {"channels": 3, "levels": 2, "n_bits": 8, **_SPLINE, "coupling_scale": "sigmoid", **_LU},
    {
        "channels": 1,
        "levels": 2,
        "n_bits": 8,
        **_SPLINE,
        **_QLU,
        **_LOGIT,
        "checkerboards": 2,
        **_VARIATIONAL,
    },
    {
        "channels": 1,
        "levels": 1,
        "n_bits": 8,
        **_TANH,
        **_QLU,
        **_LOGIT,
        "checkerboards": 1,
        "image_size": "2x14",
    },
]
"""All that differs between flows, in combinations; images are 8 x 8 unless they have a size."""


def random_glow(*, seed: int = 0, **config: Any) -> Glow:
    """A small model in which no weight has its initial value: `random_glow(levels=2)`."""
    defaults = {"image_size": 8, "channels": 1, "steps_per_level": 2, "width": 6, "coupling_actnorm": False}
    defaults |= {"coupling_scale": "sigmoid", "parametrization": "lu", "pixel_width": 6}
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        model = Glow(GlowConfig(**(defaults | config))).eval()
        for name, parameter in model.named_parameters():
            # Matrices are perturbed less, so that they stay well-conditioned.
            size = 0.02 if name.endswith(("lower", "upper", "matrix")) else 0.1
            parameter.add_(size * torch.randn(parameter.shape))
    return model


def random_images(rng: np.random.Generator, glow: FoldedGlow, n: int) -> npt.NDArray[np.uint8]:
    """uint8 [n, H, W, C]."""
    return rng.integers(0, 256, (n, *glow.image_shape), np.uint8)


def random_noise(rng: np.random.Generator, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Multiples of 2^-24 in [0, 1), as the service draws them."""
    return (rng.integers(0, 2**24, images.shape) * 2.0**-24).astype(np.float32)


def run_graph(model: onnx.ModelProto, **inputs: npt.NDArray[Any]) -> dict[str, npt.NDArray[Any]]:
    """Runs a graph in ONNX Runtime and returns all outputs by name: `run_graph(model, latent=...)`."""
    session = _session(model.SerializeToString(deterministic=True))
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))


@lru_cache(maxsize=8)
def _session(data: bytes) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # graphs of this size are slower on several threads
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
