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
CASES: list[dict[str, Any]] = [
    {"channels": 1, "levels": 1, "coupling": "affine", "parametrization": "lu", "n_bits": 8},
    {"channels": 1, "levels": 2, "coupling": "affine", "parametrization": "plain", "n_bits": 2},
    {"channels": 1, "levels": 3, "coupling": "affine", "parametrization": "lu", "n_bits": 5},
    {"channels": 3, "levels": 1, "coupling": "affine", "parametrization": "plain", "n_bits": 7},
    {"channels": 3, "levels": 2, "coupling": "affine", "parametrization": "lu", "n_bits": 4},
    {"channels": 3, "levels": 3, "coupling": "affine", "parametrization": "lu", "n_bits": 8},
    {"channels": 1, "levels": 1, "coupling": "additive", "parametrization": "plain", "n_bits": 1},
    {"channels": 1, "levels": 2, "coupling": "additive", "parametrization": "lu", "n_bits": 3},
    {"channels": 3, "levels": 3, "coupling": "additive", "parametrization": "lu", "n_bits": 6},
    {"channels": 3, "levels": 2, "coupling": "affine", "n_bits": 6, **_ORTHOGONAL},
    {"channels": 1, "levels": 2, "coupling": "affine", "n_bits": 4, **_ORTHOGONAL, **_VARIATIONAL},
    {"channels": 3, "levels": 1, "coupling": "additive", "n_bits": 5, **_ORTHOGONAL, **_VARIATIONAL},
    {"channels": 3, "levels": 3, "coupling": "affine", "parametrization": "lu", "n_bits": 8, **_VARIATIONAL},
    {
        "channels": 1,
        "levels": 1,
        "coupling": "affine",
        "parametrization": "plain",
        "n_bits": 1,
        **_VARIATIONAL,
    },
]
"""All that differs between flows, in combinations."""


def random_glow(*, seed: int = 0, **config: Any) -> Glow:
    """A small model in which no weight has its initial value: `random_glow(levels=2)`."""
    defaults = {"image_size": 8, "channels": 1, "steps_per_level": 2, "width": 6, "coupling_actnorm": False}
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
    return rng.integers(0, 256, (n, glow.image_size, glow.image_size, glow.channels), np.uint8)


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
