"""The checkpoint of a finished run: the model, its configuration, and how it was trained."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from glowserve_training.config import DataConfig, GlowConfig, stored_model
from glowserve_training.data import HeldOutRecord, KnownImage
from glowserve_training.errors import CheckpointError
from glowserve_training.model import Glow
from glowserve_training.saving import save
from glowserve_training.stored import data_config, stored_fields

_FORMAT = "glowserve.checkpoint"
_FORMAT_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class TrainingRecord:
    """How a model was trained, and its final figures."""

    steps: int
    """Optimizer steps of the run."""

    images_seen: int
    """Images in all batches together, repetitions included."""

    seed: int
    """Seed of initialization, order of images, and noise."""

    held_out_digest: str
    """`HeldOutImages.digest`."""

    metrics: dict[str, float]
    """"validation_bits_per_dim" and "test_bits_per_dim" of these weights."""

    best_step: int | None = None
    """The step whose EMA was the best on validation images; None in old checkpoints, which have the last weights."""

    weights_step: int | None = None
    """The step whose EMA these weights are: `best_step` in model.ckpt, `steps` in last.ckpt; None as `best_step`."""


@dataclass(frozen=True)
class Checkpoint:
    """The result of `glowserve train`."""

    model: Glow
    """In evaluation mode, on the CPU."""

    data: DataConfig
    """The images that it was trained on."""

    training: TrainingRecord
    """How it was trained."""

    glowserve_version: str = importlib.metadata.version("glowserve")
    """The version that trained it."""

    held_out: HeldOutRecord | None = None
    """The images that were held out; None in old checkpoints."""


def save_checkpoint(checkpoint: Checkpoint, path: Path) -> None:
    """Writes a checkpoint atomically.

    Raises:
        RunError: it cannot be written.
    """
    content = {
        "format": _FORMAT,
        "format_version": _FORMAT_VERSION,
        "glowserve_version": checkpoint.glowserve_version,
        "config": stored_fields(checkpoint.model.config),
        "data": stored_fields(checkpoint.data),
        "training": asdict(checkpoint.training),
        "state_dict": {name: tensor.cpu() for name, tensor in checkpoint.model.state_dict().items()},
    }
    if checkpoint.held_out is not None:
        content["held_out"] = asdict(checkpoint.held_out, dict_factory=_without_none)
    save(content, path, "the finished model")


def _without_none(fields: list[tuple[str, Any]]) -> dict[str, Any]:
    """Older versions know no labels."""
    return {name: value for name, value in fields if value is not None}


def load_checkpoint(
    path: Path, *, accept: Callable[[Mapping[str, Tensor]], None] = lambda _: None
) -> Checkpoint:
    """Reads a checkpoint; no code in the file is executed.

    Args:
        path: the checkpoint.
        accept: called with the weights before the model is built; raises an error if the model is not wanted.

    Raises:
        CheckpointError: the file does not exist, is not a checkpoint, or is damaged.
    """
    content = _read(path)
    try:
        accept(content["state_dict"])
        model = Glow(GlowConfig(**stored_model(content["config"])))
        model.load_state_dict(content["state_dict"])
        return Checkpoint(
            model=model.eval(),
            data=data_config(content["data"]),
            training=TrainingRecord(**content["training"]),
            glowserve_version=content["glowserve_version"],
            held_out=_held_out(content.get("held_out")),
        )
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        reason = str(error).partition("\n")[0]
        raise CheckpointError(f"checkpoint {path} has missing or wrong content: {reason}") from error


def _held_out(stored: Any) -> HeldOutRecord | None:
    if stored is None:
        return None
    if not isinstance(stored, dict):
        raise TypeError(f"held_out is a {type(stored).__name__}")
    return HeldOutRecord(
        **{name: [KnownImage(**image) for image in images] for name, images in stored.items()}
    )


def _read(path: Path) -> dict[str, Any]:
    """The content of a checkpoint of this format."""
    if not path.is_file():
        raise CheckpointError(
            f"checkpoint {path}: there is no such file; `glowserve train` writes RUN_DIR/model.ckpt"
        )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # zip, pickle and torch raise many kinds of errors for foreign bytes
        raise CheckpointError(
            f"checkpoint {path} cannot be read: it is damaged or not a checkpoint; give RUN_DIR/model.ckpt"
        ) from error
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise CheckpointError(
            f"checkpoint {path} was not written by `glowserve train`; give RUN_DIR/model.ckpt"
        )
    if content.get("format_version") != _FORMAT_VERSION:
        raise CheckpointError(
            f"checkpoint {path} has format version {content.get('format_version')} and this is glowserve "
            f"{importlib.metadata.version('glowserve')}, which reads {_FORMAT_VERSION}; use the version that wrote it, "
            f"glowserve {content.get('glowserve_version', 'unknown')}"
        )
    return content
