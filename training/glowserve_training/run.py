"""A training run: from a data source to RUN_DIR/model.ckpt, RUN_DIR/last.ckpt and a learning curve.

The result is a function of the configuration: the same seed gives the same weights on the same hardware.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from glowserve_training.checkpoint import Checkpoint, TrainingRecord, save_checkpoint
from glowserve_training.config import RunConfig
from glowserve_training.curve import draw_curve
from glowserve_training.data import HeldOutRecord, ImageData, load_images
from glowserve_training.directory import RunDirectory
from glowserve_training.errors import DivergedError, RunError
from glowserve_training.evaluation import EvaluatedGlow, measure_likelihood
from glowserve_training.fit import Fitted, fit
from glowserve_training.hardware import Hardware
from glowserve_training.held_out import keep_held_out
from glowserve_training.model import Glow
from glowserve_training.module import GlowModule


def train(
    config: RunConfig,
    run_dir: Path,
    *,
    hardware: Hardware | None = None,
    callbacks: Sequence[Callback] = (),
) -> Path:
    """Trains a model, resumes an interrupted run, or continues an extended one. Does nothing if it has finished.

    Args:
        config: the run's configuration.
        run_dir: the run's directory; made if needed.
        hardware: the devices to use; None for one device, a GPU if there is one.
        callbacks: additional Lightning callbacks.

    Returns:
        The path of the checkpoint with the best weights, RUN_DIR/model.ckpt. Of distributed processes, rank 0 writes
        it; the others return before it exists.

    Raises:
        RunError: `run_dir` has a run with another configuration, or `hardware` cannot be used.
        DataError: the images cannot be read, or are too few.
        DivergedError: training diverged.
        KeyboardInterrupt: the user pressed Ctrl-C; the same call resumes.
    """
    hardware = hardware or Hardware()
    _check_hardware(hardware, config)
    directory = RunDirectory(run_dir)
    directory.check(config)
    if directory.is_finished(config):
        return directory.result
    images = load_images(config.data, files=directory.files(), cache=directory.images, say=_say)
    with directory.claim(config, images) if is_rank_zero() else nullcontext():
        _train(config, images, directory, hardware, callbacks)
    return directory.result


def is_rank_zero() -> bool:
    """Whether this process is rank 0 of distributed processes, or the only one."""
    return bool(rank_zero_only.rank == 0)  # type: ignore[attr-defined]  # Lightning sets it


@rank_zero_only
def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _check_hardware(hardware: Hardware, config: RunConfig) -> None:
    if config.batch_size % hardware.processes:
        raise RunError(
            f"batch_size is {config.batch_size}, which {hardware.processes} processes cannot share equally; make it a "
            f"multiple of {hardware.processes}"
        )
    if hardware.device == "cuda" and not torch.cuda.is_available():
        raise RunError("device is 'cuda', and PyTorch finds no GPU that it can use; use 'cpu' or 'auto'")


def _train(
    config: RunConfig,
    images: ImageData,
    directory: RunDirectory,
    hardware: Hardware,
    callbacks: Sequence[Callback],
) -> None:
    torch.manual_seed(config.seed)
    module = GlowModule(_new_model(config, images), config)
    fitted = fit(
        module,
        images,
        config,
        resume=directory.resume,
        logs=directory.logs,
        hardware=hardware,
        callbacks=callbacks,
    )
    if not is_rank_zero():
        return
    keep_held_out(replace(images, classes=config.data.classes), directory.path)
    model = module.model.cpu().eval()
    best = _final_metrics(model, fitted.best, images)
    if not all(map(math.isfinite, best.values())):
        raise DivergedError(
            f"the trained model has {best['validation_bits_per_dim']} bits/dim on validation images: training "
            f"diverged. Start again in another run directory with a learning rate below {config.learning_rate}"
        )
    _save(directory.result, model, best, fitted.best_step, fitted, images, config)
    last = best if fitted.best_step == fitted.steps else _final_metrics(model, fitted.last, images)
    _save(directory.last, model, last, fitted.steps, fitted, images, config)
    draw_curve(directory.logs, config.batch_size, directory.curve, fitted.best_step)
    directory.finish(config, fitted.steps)


def _new_model(config: RunConfig, images: ImageData) -> Glow:
    model = Glow(config.model)
    if model.class_priors is not None:
        assert images.train_labels is not None
        model.class_priors.set_shares(torch.from_numpy(images.train_labels))
    return model


@torch.no_grad()
def _final_metrics(model: Glow, weights: Sequence[Tensor], images: ImageData) -> dict[str, float]:
    """Bits/dim of all validation and test images with these weights, which the model keeps.

    With classes also the share of them whose most probable class is their own.
    """
    for parameter, weight in zip(model.parameters(), weights, strict=True):
        parameter.copy_(weight)
    splits = {"validation": images.validation, "test": images.test}
    evaluated = EvaluatedGlow(model)
    metrics = {
        f"{name}_bits_per_dim": measure_likelihood(evaluated, split).bits_per_dim
        for name, split in splits.items()
    }
    for name, split in splits.items():
        labels = getattr(images, f"{name}_labels")
        if model.class_priors is not None and labels is not None:
            metrics[f"{name}_accuracy"] = float((evaluated.classify(split) == labels).mean())
    return metrics


def _save(
    path: Path,
    model: Glow,
    metrics: dict[str, float],
    weights_step: int,
    fitted: Fitted,
    images: ImageData,
    config: RunConfig,
) -> None:
    record = TrainingRecord(
        steps=fitted.steps,
        images_seen=fitted.steps * config.batch_size,
        seed=config.seed,
        held_out_digest=images.digest,
        metrics=metrics,
        best_step=fitted.best_step,
        weights_step=weights_step,
    )
    save_checkpoint(Checkpoint(model, config.data, record, held_out=HeldOutRecord.of(images)), path)
