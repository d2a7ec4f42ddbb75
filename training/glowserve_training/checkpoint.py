"""The checkpoint: a trained model, and all that is needed to export it and to know where it came from."""

from __future__ import annotations

import importlib.metadata
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from glowserve.images import Preparation
from glowserve_training.data import DataConfig
from glowserve_training.errors import CheckpointError
from glowserve_training.model import Glow, GlowConfig
from glowserve_training.saving import save

_FORMAT = "glowserve.checkpoint"
_FORMAT_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class TrainingRecord:
    """How a model was trained."""

    steps: int
    """Optimizer steps."""

    images_seen: int
    """Repeats counted."""

    seed: int
    """Of initialization, order and noise."""

    held_out_digest: str
    """`ImageData.held_out_digest` of the validation and test images."""

    metrics: dict[str, float]
    """Figures of the finished model, among them "validation_bits_per_dim" and "test_bits_per_dim"."""


@dataclass(frozen=True)
class Checkpoint:
    """What `glowserve train` leaves behind."""

    model: Glow
    """In evaluation mode, on the CPU; its `config` is the architecture."""

    data: DataConfig
    """The data that it was trained on."""

    training: TrainingRecord
    """How."""

    glowserve_version: str = importlib.metadata.version("glowserve")
    """What it was trained with."""


def save_checkpoint(checkpoint: Checkpoint, path: Path) -> None:
    """Writes a checkpoint, whole or not at all.

    Raises:
        RunError: it cannot be written.
    """
    content = {
        "format": _FORMAT,
        "format_version": _FORMAT_VERSION,
        "glowserve_version": checkpoint.glowserve_version,
        "config": asdict(checkpoint.model.config),
        "data": asdict(checkpoint.data),
        "training": asdict(checkpoint.training),
        "state_dict": {name: tensor.cpu() for name, tensor in checkpoint.model.state_dict().items()},
    }
    save(content, path, "the finished model")


def load_checkpoint(path: Path) -> Checkpoint:
    """Reads a checkpoint; nothing in the file is executed.

    Raises:
        CheckpointError: there is no such file, it is none of ours, or it is damaged.
    """
    if not path.is_file():
        raise CheckpointError(
            f"checkpoint {path}: there is no such file; `glowserve train` writes RUN_DIR/model.ckpt"
        )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever zip, pickle and torch make of foreign bytes
        raise CheckpointError(
            f"checkpoint {path} cannot be read as one: it is damaged or something else"
        ) from error
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise CheckpointError(f"checkpoint {path} was not written by `glowserve train`")
    if content.get("format_version") != _FORMAT_VERSION:
        raise CheckpointError(
            f"checkpoint {path} has format version {content.get('format_version')} and this is glowserve "
            f"{importlib.metadata.version('glowserve')}, which reads {_FORMAT_VERSION}; use the version that wrote it, "
            f"glowserve {content.get('glowserve_version', 'unknown')}"
        )
    try:
        model = Glow(GlowConfig(**content["config"]))
        model.load_state_dict(content["state_dict"])
        data = dict(content["data"])
        data["preparation"] = Preparation(**data["preparation"])
        return Checkpoint(
            model=model.eval(),
            data=DataConfig(**data),
            training=TrainingRecord(**content["training"]),
            glowserve_version=content["glowserve_version"],
        )
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"checkpoint {path} does not hold what it should: {_first_line(error)}"
        ) from error


def _first_line(error: Exception) -> Any:
    return str(error).partition("\n")[0]
