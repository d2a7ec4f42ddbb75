"""The training loop, on Lightning: what it is told, and what it must be taught."""

from __future__ import annotations

import logging
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

from glowserve_training.config import RunConfig
from glowserve_training.data import ImageData, StepLoader, evaluation_batches
from glowserve_training.data.batches import Batch
from glowserve_training.ema import Average
from glowserve_training.guard import Guard
from glowserve_training.hardware import Machine, keep_freed_memory
from glowserve_training.module import GlowModule
from glowserve_training.progress import Progress
from glowserve_training.saving import save

_EVALUATION_BATCH = 64
# Validation and test images that a curve is drawn of; the finished model is measured on all of them.
_WATCHED = 256
# Steps between two looks of the guard, each of which waits for the device and keeps a copy of the state.
_GUARD_EVERY = 50


def fit(
    module: GlowModule,
    images: ImageData,
    config: RunConfig,
    *,
    resume: Path,
    logs: Path,
    machine: Machine,
    callbacks: Sequence[Callback],
) -> None:
    """Trains, from the state in `resume` if there is one.

    Args:
        module: what is trained, changed in place; at the end it holds the average of its weights.
        images: what it learns from, and what watches over it.
        config: the run's.
        resume: the file of the last state.
        logs: the folder of TensorBoard's events.
        machine: what to compute with.
        callbacks: of Lightning, in addition.

    Raises:
        DivergedError: training went back too often.
        RunError: a state could not be written.
        KeyboardInterrupt: as Ctrl-C brings it.
    """
    keep_freed_memory()
    start = torch.load(resume, map_location="cpu", weights_only=True)["global_step"] if resume.exists() else 0
    look, every = _intervals(config.steps)
    average = Average(config.average_decay)
    with _quiet():
        trainer = lightning.Trainer(
            accelerator=machine.device,
            devices=machine.devices,
            num_nodes=machine.nodes,
            strategy="ddp" if machine.processes > 1 else "auto",
            use_distributed_sampler=False,  # the loader knows which part of a batch is whose
            precision=cast("Any", config.precision),
            max_steps=config.steps,
            max_epochs=1,
            val_check_interval=every,
            num_sanity_val_steps=0,
            log_every_n_steps=min(10, every),
            logger=TensorBoardLogger(logs.parent, name="", version=logs.name),
            enable_model_summary=False,
            enable_progress_bar=False,
            plugins=[_AtomicCheckpointIO()],
            callbacks=[
                average,
                Guard(
                    every=look,
                    steps=config.steps,
                    condition_limit=config.condition_limit,
                    max_returns=config.max_returns,
                    average=average,
                ),
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
        batches = StepLoader(
            images.train,
            batch_size=config.batch_size,
            steps=config.steps,
            seed=config.seed,
            start=start,
            rank=trainer.global_rank,
            world_size=trainer.world_size,
            pin_memory=trainer.strategy.root_device.type == "cuda",
        )
        if trainer.is_global_zero:
            for unfinished in resume.parent.glob(".*.part"):  # of a run that was killed while it saved
                unfinished.unlink()
        if machine.checkpoint_activations:
            module.model.checkpoint_activations()
        if machine.compile:
            module.model.compile_steps()
        try:
            trainer.fit(
                module,
                batches,
                [_watched(images.validation), _watched(images.test)],
                ckpt_path=resume if start else None,
            )
        except SystemExit:  # Lightning's way of passing on Ctrl-C
            raise KeyboardInterrupt from None
        average.put_into(module)


def _intervals(steps: int) -> tuple[int, int]:
    """Steps between two looks of the guard, and between two saved states: a multiple, so that each is a good one."""
    every = max(1, min(steps // 20, 500))
    look = min(_GUARD_EVERY, every)
    return look, every - every % look


def _watched(images: Any) -> DataLoader[Batch]:
    batches = evaluation_batches(images[:_WATCHED], _EVALUATION_BATCH)
    return DataLoader(cast("Dataset[Batch]", batches), batch_size=None)


class _AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's own writing is not atomic."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        save(checkpoint, Path(path), f"the state of step {checkpoint['global_step']}")


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
