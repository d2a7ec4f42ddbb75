"""Loads a model to export, of glowserve or of a public implementation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from glowserve_training.checkpoint import load_checkpoint
from glowserve_training.config import GlowConfig
from glowserve_training.data import DataConfig
from glowserve_training.held_out import HeldOut, held_out_of

from glowserve.v1 import manifest_pb2
from glowserve_export.folded import FoldedGlow
from glowserve_export.folded_reference import FoldedReference
from glowserve_export.frontends.glowserve import fold_glow
from glowserve_export.frontends.public import IMPLEMENTATIONS, import_public
from glowserve_export.reference import Reference, TorchReference
from glowserve_export.size import check_size


@dataclass(frozen=True)
class Source:
    """A model to export."""

    glow: FoldedGlow
    """The folded model."""

    reference: Reference
    """The model in float64, to verify the graphs against."""

    flow: manifest_pb2.Flow
    """The architecture, for the manifest."""

    training: manifest_pb2.Training
    """How the model was trained, for the manifest."""

    data: DataConfig | None
    """The training data; None if unknown."""

    held_out: HeldOut | None
    """The images that were held out in training; None if unknown."""


def load_glowserve_checkpoint(path: Path, *, precision: str = "fp32", device: str = "cpu") -> Source:
    """Loads a checkpoint of `glowserve train`.

    Args:
        path: the checkpoint.
        precision: that the model will be exported with.
        device: "cpu" or "cuda": where PyTorch computes the reference.

    Raises:
        glowserve_training.errors.CheckpointError: it cannot be read.
        glowserve_export.errors.ExportError: the model is too large for a graph in that precision.
        glowserve_export.errors.NotInvertibleError: a weight is not finite, or a 1x1 convolution cannot be inverted.
    """
    checkpoint = load_checkpoint(path, accept=lambda weights: check_size(weights, precision))
    config, record = checkpoint.model.config, checkpoint.training
    model = checkpoint.model.double()  # in place: folded arrays and reference share its weights
    glow = fold_glow(model)
    return Source(
        glow=glow,
        reference=TorchReference(model, device),
        flow=manifest_pb2.Flow(
            levels=config.levels,
            steps_per_level=config.steps_per_level,
            width=config.width,
            coupling=config.coupling,
            parametrization=config.parametrization,
            dequantization=config.dequantization,
            coupling_actnorm=config.coupling_actnorm,
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            preprocessing=config.preprocessing,
            coupling_scale=config.coupling_scale if _scales(config) else "",
            checkerboards=config.checkerboards,
            classes=_classes(glow, checkpoint.data.classes),
        ),
        training=manifest_pb2.Training(
            implementation="glowserve",
            data=checkpoint.data.data,
            steps=record.steps,
            images_seen=record.images_seen,
            seed=record.seed,
            split_seed=checkpoint.data.split_seed,
            metrics=record.metrics,
        ),
        data=checkpoint.data,
        held_out=held_out_of(checkpoint, path),
    )


def _classes(glow: FoldedGlow, names: Sequence[str]) -> list[manifest_pb2.ImageClass]:
    if glow.classes is None:
        return []
    shares = np.exp(glow.classes.log_share)
    shares /= shares.sum()  # training stores them in float32
    return [
        manifest_pb2.ImageClass(name=name, share=share)
        for name, share in zip(names, shares.tolist(), strict=True)
    ]


def _scales(config: GlowConfig) -> bool:
    """Whether any coupling scales: those of variational dequantization always do."""
    return config.coupling != "additive" or config.dequantization == "variational"


def load_public_checkpoint(
    implementation: str, path: Path, arguments: Path, *, precision: str = "fp32", device: str = "cpu"
) -> Source:
    """Loads a checkpoint of a public implementation.

    Args:
        implementation: see `glowserve_export.frontends.public.IMPLEMENTATIONS`.
        path: the model's state_dict.
        arguments: JSON with the arguments of the model's constructor.
        precision: that the model will be exported with.
        device: "cpu" or "cuda": where PyTorch computes the reference.

    Raises:
        glowserve_export.errors.ExportError: see `glowserve_export.frontends.public.import_public`.
    """
    model = import_public(implementation, path, arguments, precision=precision)
    return Source(
        glow=model.glow,
        reference=FoldedReference(model.glow, device),
        flow=manifest_pb2.Flow(
            levels=len(model.glow.levels),
            steps_per_level=model.steps_per_level,
            width=model.width,
            coupling=model.coupling,
            parametrization=model.parametrization,
            dequantization="uniform",
            coupling_actnorm=model.coupling_actnorm,
            parameters=model.parameters,
            classes=_classes(model.glow, model.classes),
        ),
        training=manifest_pb2.Training(implementation=IMPLEMENTATIONS[implementation]),
        data=None,
        held_out=None,
    )
