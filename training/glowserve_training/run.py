"""A training run: from a data source to RUN_DIR/model.ckpt, with a picture of its way.

Everything is a function of the configuration: the same seed gives the same weights on the same machine.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_only

from glowserve_training.checkpoint import Checkpoint, TrainingRecord, save_checkpoint
from glowserve_training.config import RunConfig
from glowserve_training.curve import draw_curve
from glowserve_training.data import ImageData, load_images
from glowserve_training.directory import RunDirectory
from glowserve_training.errors import DivergedError, RunError
from glowserve_training.evaluation import EvaluatedGlow, measure_likelihood
from glowserve_training.fit import fit
from glowserve_training.hardware import Machine
from glowserve_training.model import Glow
from glowserve_training.module import GlowModule


def train(
    config: RunConfig,
    run_dir: Path,
    *,
    machine: Machine | None = None,
    callbacks: Sequence[Callback] = (),
) -> Path:
    """Trains a model, or goes on with training where an interrupted run stopped.

    Args:
        config: what to train.
        run_dir: the run's directory; made if needed.
        machine: what to compute with; one device of whatever kind there is, if left out.
        callbacks: of Lightning, in addition.

    Returns:
        The checkpoint's path, RUN_DIR/model.ckpt. If the run had finished already, nothing is done. Of processes that
        train together the first one writes it; the others return at once, before it is there.

    Raises:
        RunError: `run_dir` holds a run that was asked for differently.
        DataError: the images cannot be read, or are too few.
        DivergedError: training went back to an earlier state too often, or ended badly.
        KeyboardInterrupt: as Ctrl-C brings it; the same call goes on later.
    """
    machine = machine or Machine()
    if config.batch_size % machine.processes:
        raise RunError(
            f"batch_size is {config.batch_size}, which {machine.processes} processes cannot share equally; make it a "
            f"multiple of {machine.processes}"
        )
    if machine.device == "cuda" and not torch.cuda.is_available():
        raise RunError("device is 'cuda', and PyTorch finds no GPU that it can use; use 'cpu' or 'auto'")
    directory = RunDirectory(run_dir)
    directory.compare(config)
    if directory.result.exists():
        return directory.result
    images = load_images(config.data, spill=directory.images)
    # Of processes that train together one claims the directory, and writes.
    with directory.claimed(config, images) if leads() else nullcontext():
        _train(config, images, directory, machine, callbacks)
    return directory.result


def _train(
    config: RunConfig,
    images: ImageData,
    directory: RunDirectory,
    machine: Machine,
    callbacks: Sequence[Callback],
) -> None:
    torch.manual_seed(config.seed)
    module = GlowModule(Glow(config.model), config)
    fit(
        module,
        images,
        config,
        resume=directory.resume,
        logs=directory.logs,
        machine=machine,
        callbacks=callbacks,
    )
    if not leads():
        return
    model = module.model.cpu().eval()
    metrics = {
        f"{name}_bits_per_dim": measure_likelihood(EvaluatedGlow(model), split).bits_per_dim
        for name, split in (("validation", images.validation), ("test", images.test))
    }
    if not all(map(math.isfinite, metrics.values())):
        raise DivergedError(
            f"training ended with {metrics['validation_bits_per_dim']} bits/dim on validation images: it diverged. "
            f"Start again in an empty run directory with a learning rate below {config.learning_rate}"
        )
    record = TrainingRecord(
        steps=config.steps,
        images_seen=config.steps * config.batch_size,
        seed=config.seed,
        held_out_digest=images.digest,
        metrics=metrics,
    )
    save_checkpoint(Checkpoint(model, config.data, record), directory.result)
    draw_curve(directory.logs, config.batch_size, directory.curve)


def leads() -> bool:
    """Whether this process is the first, or the only one, of those that train together."""
    return bool(rank_zero_only.rank == 0)  # type: ignore[attr-defined]  # Lightning sets it
