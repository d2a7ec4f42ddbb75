"""What is exported: a model of ours or of a public implementation, as constants, and what measures their graphs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from glowserve_training.checkpoint import load_checkpoint
from glowserve_training.data import DataConfig

from glowserve.v1 import manifest_pb2
from glowserve_export.baked import BakedGlow
from glowserve_export.frontends.glowserve import bake
from glowserve_export.frontends.public import IMPLEMENTATIONS, import_public
from glowserve_export.reference import Exact, ExactBaked, ExactModel


@dataclass(frozen=True)
class Source:
    """A model to export."""

    glow: BakedGlow
    """Its constants."""

    exact: Exact
    """What its graphs are measured by."""

    flow: manifest_pb2.Flow
    """Its architecture, as the manifest states it."""

    training: manifest_pb2.Training
    """How it was trained, as the manifest states it."""

    data: DataConfig | None
    """What it was trained on, if that is known."""

    held_out_digest: str
    """Of the images that were held out in training; "" if unknown."""


def trained_here(checkpoint_path: Path) -> Source:
    """What `glowserve train` left.

    Raises:
        glowserve_training.errors.CheckpointError: it cannot be read.
        glowserve_export.errors.NotInvertibleError: a weight is not finite, or a 1x1 convolution cannot be inverted.
    """
    checkpoint = load_checkpoint(checkpoint_path)
    config, record = checkpoint.model.config, checkpoint.training
    return Source(
        glow=bake(checkpoint.model),
        exact=ExactModel(checkpoint.model),
        flow=manifest_pb2.Flow(
            levels=config.levels,
            steps_per_level=config.steps_per_level,
            width=config.width,
            coupling=config.coupling,
            parametrization=config.parametrization,
            dequantization=config.dequantization,
            coupling_actnorm=config.coupling_actnorm,
            parameters=sum(parameter.numel() for parameter in checkpoint.model.parameters()),
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
        held_out_digest=record.held_out_digest,
    )


def trained_elsewhere(implementation: str, checkpoint_path: Path, arguments: Path) -> Source:
    """What a public implementation saved.

    Args:
        implementation: see `glowserve_export.frontends.public.import_public`.
        checkpoint_path: its state_dict.
        arguments: JSON of what its model was built with.

    Raises:
        glowserve_export.errors.ExportError: see `import_public`.
    """
    model = import_public(implementation, checkpoint_path, arguments)
    return Source(
        glow=model.glow,
        exact=ExactBaked(model.glow),
        flow=manifest_pb2.Flow(
            levels=len(model.glow.levels),
            steps_per_level=model.steps_per_level,
            width=model.width,
            coupling=model.coupling,
            parametrization=model.parametrization,
            dequantization="uniform",
            coupling_actnorm=model.coupling_actnorm,
            parameters=model.parameters,
        ),
        training=manifest_pb2.Training(implementation=IMPLEMENTATIONS[implementation]),
        data=None,
        held_out_digest="",
    )
