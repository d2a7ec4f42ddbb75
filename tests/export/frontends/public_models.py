"""Makes models of public implementations with random weights, and writes their checkpoints."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from glowserve_export.folded import FoldedGlow
from glowserve_export.folded_reference import FoldedReference
from glowserve_export.frontends.chaiyujin import import_chaiyujin
from glowserve_export.frontends.folding import PublicGlow
from glowserve_export.frontends.normflows import import_normflows
from glowserve_export.frontends.rosinality import import_rosinality
from glowserve_export.frontends.y0ast import import_y0ast

from tests.export.frontends.chaiyujin_model import ChaiyujinGlow
from tests.export.frontends.normflows_model import NormflowsGlow
from tests.export.frontends.public_model import PublicModel
from tests.export.frontends.rosinality_model import RosinalityGlow
from tests.export.frontends.y0ast_model import Y0astGlow

_MODELS: dict[str, type[PublicModel]] = {
    "rosinality": RosinalityGlow,
    "y0ast": Y0astGlow,
    "chaiyujin": ChaiyujinGlow,
    "normflows": NormflowsGlow,
}


def public_model(kind: str, **arguments: Any) -> PublicModel:
    """A model that computes in float64 with float32 weights: `public_model("y0ast", flow_coupling="additive")`."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = _MODELS[kind](**arguments)
    return model.double().eval().requires_grad_(False)


IMPORTS: dict[str, Callable[[Mapping[str, torch.Tensor], Path, Path], PublicGlow]] = {
    "rosinality": import_rosinality,
    "y0ast": import_y0ast,
    "chaiyujin": import_chaiyujin,
    "normflows": import_normflows,
}
"""The frontends, which take a state_dict in memory."""


def weights_of(model: PublicModel) -> dict[str, torch.Tensor]:
    """The state_dict in float32, as training saves it."""
    return {key: x.float() if x.is_floating_point() else x for key, x in model.state_dict().items()}


def write_arguments(folder: Path, model: PublicModel, **changes: Any) -> Path:
    """Writes the model's arguments, some of them changed."""
    path = folder / "public.json"
    path.write_text(json.dumps(model.arguments | changes))
    return path


def write_public(folder: Path, model: PublicModel, **changes: Any) -> tuple[Path, Path]:
    """Writes a model's checkpoint and its arguments, some of them changed."""
    checkpoint = folder / "public.pt"
    torch.save(weights_of(model), checkpoint)
    return checkpoint, write_arguments(folder, model, **changes)


def change_weights(checkpoint: Path, **weights: torch.Tensor) -> None:
    """Replaces weights in a checkpoint."""
    torch.save(torch.load(checkpoint, weights_only=True) | weights, checkpoint)


def assert_same_likelihood(glow: FoldedGlow, model: PublicModel, rtol: float = 1e-11) -> None:
    """The folded model computes the likelihood of the model."""
    rng = np.random.default_rng(0)
    shape = (2, *glow.image_shape)
    images, noise = rng.integers(0, 256, shape, dtype=np.uint8), rng.random(shape, dtype=np.float32)
    ours = FoldedReference(glow).log_likelihood(images, noise)
    np.testing.assert_allclose(ours, model.flowed(images, noise, glow.n_bits).log_density.numpy(), rtol=rtol)
