"""A training run: from a data source to RUN_DIR/model.ckpt.

Everything is a function of the configuration: the same seed gives the same weights on the same machine.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from lightning.pytorch.callbacks import Callback

from training import quantization
from training.checkpoint import Checkpoint, TrainingRecord, save_checkpoint
from training.config import RunConfig
from training.data import ImageData, evaluation_batches, load_images
from training.data.batches import Batch
from training.directory import RunDirectory
from training.errors import DivergedError, RunError
from training.fit import EVALUATION_BATCH, fit
from training.model import Glow
from training.module import GlowModule


def train(
    config: RunConfig,
    run_dir: Path,
    *,
    device: str = "auto",
    callbacks: Sequence[Callback] = (),
) -> Path:
    """Trains a model, or goes on with training where an interrupted run stopped.

    Args:
        config: what to train.
        run_dir: the run's directory; made if needed.
        device: "auto", "cpu" or "cuda".
        callbacks: of Lightning, in addition.

    Returns:
        The checkpoint's path, RUN_DIR/model.ckpt. If the run had finished already, nothing is done.

    Raises:
        RunError: `run_dir` holds a run that was asked for differently.
        DataError: the images cannot be read, or are too few.
        DivergedError: the loss is no longer finite.
        KeyboardInterrupt: as Ctrl-C brings it; the same call goes on later.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise RunError("device is 'cuda', and PyTorch finds no GPU that it can use; use 'cpu' or 'auto'")
    directory = RunDirectory(run_dir)
    directory.compare(config)
    if directory.result.exists():
        return directory.result
    images = load_images(config.data)
    with directory.claimed(config, images):
        _train(config, images, directory, device, callbacks)
    return directory.result


def _train(
    config: RunConfig, images: ImageData, directory: RunDirectory, device: str, callbacks: Sequence[Callback]
) -> None:
    torch.manual_seed(config.seed)
    module = GlowModule(
        Glow(config.model),
        learning_rate=config.learning_rate,
        warmup_steps=config.warmup_steps,
        steps=config.steps,
    )
    fit(
        module,
        images,
        config,
        resume=directory.resume,
        logs=directory.logs,
        device=device,
        callbacks=callbacks,
    )
    model = module.model.cpu().eval()
    metrics = {
        f"{name}_bits_per_dim": mean_bits_per_dim(model, evaluation_batches(split, EVALUATION_BATCH))
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


@torch.no_grad()
def mean_bits_per_dim(model: Glow, batches: Sequence[Batch]) -> float:
    """The mean bits per dimension over batches."""
    bits = [quantization.bits_per_dim(model.log_prob(*batch), model.config.dimensions) for batch in batches]
    return float(torch.cat(bits).double().mean())
