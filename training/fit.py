"""The training loop, on Lightning: what it is told, and what it must be taught."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import lightning
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback, LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.data import DataLoader, Dataset

from glowserve.files import atomic_write
from training.config import RunConfig
from training.data import ImageData, StepLoader, evaluation_batches
from training.data.batches import Batch
from training.errors import DivergedError
from training.module import GlowModule
from training.progress import Progress

EVALUATION_BATCH = 64
# Validation images that watch over training; the finished model is measured on all of them.
_WATCHING = 256


def fit(
    module: GlowModule,
    images: ImageData,
    config: RunConfig,
    *,
    resume: Path,
    logs: Path,
    device: str,
    callbacks: Sequence[Callback],
) -> None:
    """Trains, from the state in `resume` if there is one.

    Args:
        module: what is trained, changed in place.
        images: what it learns from, and what watches over it.
        config: the run's.
        resume: the file of the last state.
        logs: the folder of TensorBoard's events.
        device: "auto", "cpu" or "cuda".
        callbacks: of Lightning, in addition.

    Raises:
        DivergedError: the loss is no longer finite.
        KeyboardInterrupt: as Ctrl-C brings it.
    """
    for unfinished in resume.parent.glob(".*.part"):  # of a run that was killed while it saved
        unfinished.unlink()
    start = torch.load(resume, map_location="cpu", weights_only=True)["global_step"] if resume.exists() else 0
    every = max(1, min(config.steps // 20, 500))
    batches = StepLoader(
        images.train, batch_size=config.batch_size, steps=config.steps, seed=config.seed, start=start
    )
    validation = evaluation_batches(images.validation[:_WATCHING], EVALUATION_BATCH)
    with _quiet():
        trainer = lightning.Trainer(
            accelerator=device,
            devices=1,
            max_steps=config.steps,
            max_epochs=1,
            gradient_clip_val=config.clip_gradient_norm,
            val_check_interval=every,
            num_sanity_val_steps=0,
            log_every_n_steps=min(10, every),
            logger=TensorBoardLogger(logs.parent, name="", version=logs.name),
            enable_model_summary=False,
            enable_progress_bar=False,
            plugins=[_AtomicCheckpointIO()],
            callbacks=[
                _Finiteness(every, config.learning_rate),
                Progress(config.steps, start),
                LearningRateMonitor("step"),
                ModelCheckpoint(
                    resume.parent,
                    filename=resume.stem,
                    every_n_train_steps=every,
                    save_top_k=1,
                    enable_version_counter=False,
                ),
                *callbacks,
            ],
        )
        try:
            trainer.fit(
                module,
                batches,
                DataLoader(cast("Dataset[Batch]", validation), batch_size=None),
                ckpt_path=resume if start else None,
            )
        except SystemExit:  # Lightning's way of passing on Ctrl-C
            raise KeyboardInterrupt from None


class _Finiteness(Callback):
    """Ends a run that has diverged, before its state replaces the last one.

    Args:
        every: steps between looks, as each has to wait for the device.
        learning_rate: for the message.
    """

    def __init__(self, every: int, learning_rate: float) -> None:
        self._every = every
        self._learning_rate = learning_rate

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Looks at the loss; Lightning saves after it has asked all other callbacks."""
        if (batch_idx + 1) % self._every == 0 and not math.isfinite(loss := float(outputs["loss"])):
            raise DivergedError(
                f"the loss is {loss} bits/dim at step {batch_idx + 1}: training diverged. Start again in an empty run "
                f"directory with a learning rate below {self._learning_rate}"
            )


class _AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's own writing is not atomic."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(Path(path)) as file:
            torch.save(checkpoint, file)


@contextmanager
def _quiet() -> Iterator[None]:
    """Lightning tells of hardware, of tips and of its product; a user of this command asked for none."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric", "lightning")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning")
            warnings.filterwarnings("ignore", module="torch.utils.tensorboard")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
