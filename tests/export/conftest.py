"""What tests of the export share: models with random weights, and an interpreter of FoldedGlow to measure graphs by."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest
import torch
from glowserve_export.folded import (
    FoldedConv,
    FoldedDequantization,
    FoldedGlow,
    FoldedNetwork,
    FoldedStep,
)
from glowserve_training.model import Glow, GlowConfig

from tests.export.public_models import PublicModel, RosinalityGlow, Y0astGlow

Array = npt.NDArray[np.float64]

# What can differ between flows: channels, levels, coupling, parametrization, bits, and what some have besides.
_ORTHOGONAL = {"parametrization": "orthogonal", "coupling_actnorm": True}
_VARIATIONAL = {"dequantization": "variational"}
CASES = [
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


@pytest.fixture(params=CASES, ids=lambda case: "-".join(map(str, case.values())))
def case(request: pytest.FixtureRequest) -> dict[str, Any]:
    """A test that takes this runs for each of `CASES`."""
    settings: dict[str, Any] = request.param
    return settings


@dataclass(frozen=True)
class Terms:
    """What the interpreter says of N images."""

    log_likelihood: Array
    latent: Array
    log_prior: Array
    log_det: Array


class Interpreter:
    """Runs a FoldedGlow in NumPy and float64, by the letter of the description in the manifest's contract."""

    def forward(self, glow: FoldedGlow, images: npt.NDArray[np.uint8], noise: npt.NDArray[Any]) -> Terms:
        """Images and noise [N, H, W, C]."""
        bins = np.floor(images / 2.0 ** (8 - glow.n_bits))
        noise, noise_log_det = _dequantization_noise(glow, bins, noise)
        x = ((bins + noise) / 2.0**glow.n_bits - 0.5).transpose(0, 3, 1, 2)
        latents, log_prior, log_det = [], [], []
        for level in glow.levels:
            x, terms = _squeeze(x), np.zeros(len(x))
            for step in level.steps:
                x = np.einsum("oc,nchw->nohw", step.matrix, x) + step.bias[:, None, None]
                passive, active = np.split(x, 2, axis=1)
                shift, log_scale = _shift_and_log_scale(step, passive)
                x = np.concatenate((passive, (active + shift) * np.exp(log_scale)), axis=1)
                terms = terms + _sum(log_scale)
            if level.prior is None:
                latent = (x - _at_places(glow.top_mean)) / np.exp(_at_places(glow.top_log_scale))
            else:
                x, z = np.split(x, 2, axis=1)
                mean, log_scale = np.split(_conv(x, level.prior), 2, axis=1)
                latent = (z - mean) / np.exp(log_scale)
                terms = terms - _sum(log_scale)
            latents.append(latent.reshape(len(latent), -1))
            log_prior.append((-0.5 * (latent**2 + math.log(2 * math.pi))).sum(axis=(1, 2, 3)))
            log_det.append(terms if log_det else terms + noise_log_det)
        total = sum(log_prior) + sum(log_det) + glow.log_det_constant
        return Terms(
            total, np.concatenate(latents, axis=1), np.stack(log_prior, axis=1), np.stack(log_det, axis=1)
        )

    def reverse(self, glow: FoldedGlow, latent: npt.NDArray[Any]) -> Array:
        """Latents [N, D] to pixels in bins, [N, H, W, C]."""
        latent = latent.astype(np.float64)
        ends = np.cumsum([math.prod(shape) for shape in glow.latent_shapes()])
        parts = [
            part.reshape(-1, *shape)
            for part, shape in zip(np.split(latent, ends[:-1], axis=1), glow.latent_shapes(), strict=True)
        ]
        x = np.empty(0)
        for level, part in zip(reversed(glow.levels), reversed(parts), strict=True):
            if level.prior is None:
                x = part * np.exp(_at_places(glow.top_log_scale)) + _at_places(glow.top_mean)
            else:
                mean, log_scale = np.split(_conv(x, level.prior), 2, axis=1)
                x = np.concatenate((x, mean + part * np.exp(log_scale)), axis=1)
            for step in reversed(level.steps):
                passive, changed = np.split(x, 2, axis=1)
                shift, log_scale = _shift_and_log_scale(step, passive)
                x = np.concatenate((passive, changed / np.exp(log_scale) - shift), axis=1)
                x = np.einsum("oc,nchw->nohw", step.inverse_matrix, x) + step.inverse_bias[:, None, None]
            x = _unsqueeze(x)
        return (x.transpose(0, 2, 3, 1) + 0.5) * 2.0**glow.n_bits


def _dequantization_noise(glow: FoldedGlow, bins: Array, noise: npt.NDArray[Any]) -> tuple[Array, Array]:
    """The noise v [N, H, W, C] that uniform noise becomes, and the log-determinant [N]."""
    noise = noise.astype(np.float64)
    if glow.dequantization is None:
        return noise, np.zeros(len(noise))
    return _learned_noise(glow.dequantization, (bins + 0.5) / 2.0**glow.n_bits - 0.5, noise)


def _learned_noise(dequantization: FoldedDequantization, middles: Array, noise: Array) -> tuple[Array, Array]:
    margin = dequantization.margin
    u = margin + (1 - 2 * margin) * noise
    log_det = math.log(1 - 2 * margin) * noise[0].size - _sum(np.log(u)) - _sum(np.log(1 - u))
    z = _squeeze(np.log(u / (1 - u)).transpose(0, 3, 1, 2))
    context = _squeeze(middles.transpose(0, 3, 1, 2))
    for network in dequantization.networks:
        passive, active = np.split(z, 2, axis=1)
        shift, logit = np.split(_outputs(np.concatenate((passive, context), axis=1), network), 2, axis=1)
        scale = 2 / (1 + np.exp(-logit))
        log_det = log_det + _sum(np.log(scale))
        z = np.concatenate(((active + shift) * scale, passive), axis=1)
    v = _unsqueeze(1 / (1 + np.exp(-z))).transpose(0, 2, 3, 1)
    return v, log_det + _sum(np.log(v)) + _sum(np.log(1 - v))


def _squeeze(x: Array) -> Array:
    """The four places of each 2x2 block, row by row, become four groups of channels."""
    return np.concatenate([x[:, :, row::2, column::2] for row, column in _places()], axis=1)


def _unsqueeze(y: Array) -> Array:
    n, channels, height, width = y.shape
    x = np.empty((n, channels // 4, 2 * height, 2 * width))
    for (row, column), group in zip(_places(), np.split(y, 4, axis=1), strict=True):
        x[:, :, row::2, column::2] = group
    return x


def _places() -> Iterator[tuple[int, int]]:
    return ((row, column) for row in (0, 1) for column in (0, 1))


def _conv(x: Array, conv: FoldedConv) -> Array:
    kernel = conv.weight.shape[2]
    border = ((0, 0), (0, 0), (kernel // 2,) * 2, (kernel // 2,) * 2)
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(x, border), (kernel, kernel), axis=(2, 3))
    return np.einsum("nchwij,ocij->nohw", windows, conv.weight) + _at_places(conv.bias)


def _at_places(values: Array) -> Array:
    return values if values.ndim == 3 else values[:, None, None]


def _shift_and_log_scale(step: FoldedStep, passive: Array) -> tuple[Array, Array]:
    outputs = _outputs(passive, step.network)
    if not step.affine:
        return outputs, np.zeros_like(outputs)
    shift, logit = np.split(outputs, 2, axis=1)
    return shift, -np.logaddexp(0, -logit)


def _outputs(x: Array, network: FoldedNetwork) -> Array:
    first, second, last = network
    hidden = np.maximum(_conv(x, first), 0)
    hidden = np.maximum(_conv(hidden, second), 0)
    return _conv(hidden, last)


def _sum(x: Array) -> Array:
    return x.sum(axis=(1, 2, 3))


@pytest.fixture(scope="session")
def interpreter() -> Interpreter:
    """The oracle."""
    return Interpreter()


@pytest.fixture(scope="session")
def random_glow() -> Callable[..., Glow]:
    """Makes small models, no weight of which is where it started: `random_glow(levels=2)`."""

    def make(seed: int = 0, **config: Any) -> Glow:
        defaults = {
            "image_size": 8,
            "channels": 1,
            "steps_per_level": 2,
            "width": 6,
            "coupling_actnorm": False,
        }
        settings = defaults | config
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(seed)
            model = Glow(GlowConfig(**settings)).eval()
            for name, parameter in model.named_parameters():
                # Matrices are perturbed less: they are to stay well-conditioned.
                size = 0.02 if name.endswith(("lower", "upper", "matrix")) else 0.1
                parameter.add_(size * torch.randn(parameter.shape))
        return model

    return make


@pytest.fixture(scope="session")
def run_graph() -> Callable[..., dict[str, npt.NDArray[Any]]]:
    """Runs a graph in ONNX Runtime: `run_graph(model, latent=...)`; returns all outputs by name."""

    def run(model: Any, **inputs: npt.NDArray[Any]) -> dict[str, npt.NDArray[Any]]:
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, session.run(names, inputs), strict=True))

    return run


MakePublic = Callable[..., PublicModel]
WritePublic = Callable[..., tuple[Path, Path]]


@pytest.fixture(scope="session")
def public_model() -> MakePublic:
    """Makes models of public implementations, with random weights: `public_model("y0ast", flow_coupling="additive")`.

    They compute in float64; their weights are float32.
    """

    def make(kind: str, **arguments: Any) -> PublicModel:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = {"rosinality": RosinalityGlow, "y0ast": Y0astGlow}[kind](**arguments)
        return model.double().eval().requires_grad_(False)

    return make


@pytest.fixture
def write_public(tmp_path: Path) -> WritePublic:
    """Writes the checkpoint and the arguments of such a model, some of them changed; returns the paths."""

    def write(model: PublicModel, **changes: Any) -> tuple[Path, Path]:
        checkpoint, arguments = tmp_path / "public.pt", tmp_path / "public.json"
        weights = model.state_dict().items()
        torch.save({key: x.float() if x.is_floating_point() else x for key, x in weights}, checkpoint)
        arguments.write_text(json.dumps(model.arguments | changes))
        return checkpoint, arguments

    return write
