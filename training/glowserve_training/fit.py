"""The training loop: a configured Lightning trainer."""

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

from glowserve.images import UInt8Array
from glowserve_training.config import RunConfig
from glowserve_training.data import ImageData, StepLoader, evaluation_batches
from glowserve_training.data.batches import Batch
from glowserve_training.ema import EMA
from glowserve_training.guard import Guard
from glowserve_training.hardware import Hardware, keep_freed_memory, use_allowed_cores
from glowserve_training.module import GlowModule
from glowserve_training.progress import Progress
from glowserve_training.saving import save

_EVALUATION_BATCH = 64
# Validation and test images that are evaluated during training; the finished model is evaluated on all.
_MOST_MONITORED_IMAGES = 256
# Validations, and saved states, in a run; and the most steps between two of them.
_VALIDATIONS, _MOST_STEPS_BETWEEN_VALIDATIONS = 20, 500
# Most steps between two checks of the guard, each of which waits for the device and copies the state.
_MOST_STEPS_BETWEEN_CHECKS = 50


def fit(
    module: GlowModule,
    images: ImageData,
    config: RunConfig,
    *,
    resume: Path,
    logs: Path,
    hardware: Hardware,
    callbacks: Sequence[Callback],
) -> None:
    """Trains, from the saved state in `resume` if there is one.

    Args:
        module: the module to train in place; at the end its weights are the EMA.
        images: training, validation and test images.
        config: the run's configuration.
        resume: the file of the saved state.
        logs: the folder of TensorBoard's events.
        hardware: the devices to use.
        callbacks: additional Lightning callbacks.

    Raises:
        DivergedError: there was a fault after the last rollback.
        RunError: a state could not be written.
        KeyboardInterrupt: the user pressed Ctrl-C.
    """
    keep_freed_memory()
    use_allowed_cores()
    start = torch.load(resume, map_location="cpu", weights_only=True)["global_step"] if resume.exists() else 0
    ema = EMA(config.average_decay)
    with _quiet_lightning():
        all_callbacks = [*_callbacks(config, ema, start, resume), *callbacks]
        trainer = _trainer(config, hardware, logs, all_callbacks)
        if trainer.is_global_zero:
            for unfinished in resume.parent.glob(".*.part"):  # of a process that was killed while saving
                unfinished.unlink()
        if hardware.checkpoint_activations:
            module.model.checkpoint_activations()
        if hardware.compile:
            module.model.compile_steps()
        try:
            trainer.fit(
                module,
                _training_loader(images, config, start, trainer),
                [_monitoring_loader(images.validation), _monitoring_loader(images.test)],
                ckpt_path=resume if start else None,
            )
        except SystemExit:  # Lightning turns Ctrl-C into this
            raise KeyboardInterrupt from None
        ema.copy_to(module)


def _intervals(steps: int) -> tuple[int, int]:
    """Steps between checks of the guard, and between validations.

    The second is a multiple of the first, so that every saved state has passed a check.
    """
    validate = max(1, min(steps // _VALIDATIONS, _MOST_STEPS_BETWEEN_VALIDATIONS))
    check = min(_MOST_STEPS_BETWEEN_CHECKS, validate)
    return check, validate - validate % check


def _callbacks(config: RunConfig, ema: EMA, start: int, resume: Path) -> list[Callback]:
    check_every, save_every = _intervals(config.steps)
    return [
        ema,
        Guard(
            every=check_every,
            steps=config.steps,
            condition_limit=config.condition_limit,
            max_rollbacks=config.max_rollbacks,
            ema=ema,
        ),
        Progress(config.steps, start),
        LearningRateMonitor("step"),
        ModelCheckpoint(
            resume.parent,
            filename=resume.stem,
            every_n_train_steps=save_every,
            save_top_k=1,
            enable_version_counter=False,
        ),
    ]


def _trainer(
    config: RunConfig, hardware: Hardware, logs: Path, callbacks: list[Callback]
) -> lightning.Trainer:
    _, validate_every = _intervals(config.steps)
    return lightning.Trainer(
        accelerator=hardware.device,
        devices=hardware.devices,
        num_nodes=hardware.nodes,
        strategy="ddp" if hardware.processes > 1 else "auto",
        use_distributed_sampler=False,  # StepLoader yields each rank's part of the batch
        precision=cast("Any", config.precision),
        max_steps=config.steps,
        max_epochs=1,
        val_check_interval=validate_every,
        num_sanity_val_steps=0,
        log_every_n_steps=min(10, validate_every),
        logger=TensorBoardLogger(logs.parent, name="", version=logs.name),
        enable_model_summary=False,
        enable_progress_bar=False,
        plugins=[_AtomicCheckpointIO()],
        callbacks=callbacks,
    )


def _training_loader(
    images: ImageData, config: RunConfig, start: int, trainer: lightning.Trainer
) -> StepLoader:
    return StepLoader(
        images.train,
        batch_size=config.batch_size,
        steps=config.steps,
        seed=config.seed,
        start=start,
        rank=trainer.global_rank,
        world_size=trainer.world_size,
        pin_memory=trainer.strategy.root_device.type == "cuda",
    )


def _monitoring_loader(images: UInt8Array) -> DataLoader[Batch]:
    batches = evaluation_batches(images[:_MOST_MONITORED_IMAGES], _EVALUATION_BATCH)
    return DataLoader(cast("Dataset[Batch]", batches), batch_size=None)


class _AtomicCheckpointIO(TorchCheckpointIO):
    """Replaces Lightning's writing, which neither fsyncs nor is atomic on all file systems."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        save(checkpoint, Path(path), f"the state of step {checkpoint['global_step']}")


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Silences Lightning's messages about hardware, tips and products."""
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
