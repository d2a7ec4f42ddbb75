"""The training loop: a configured Lightning trainer, which does not validate or save by itself."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import lightning
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback, Checkpoint, LearningRateMonitor
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from glowserve_training.config import RunConfig
from glowserve_training.data import ImageData, StepLoader
from glowserve_training.ema import EMA
from glowserve_training.guard import Guard
from glowserve_training.hardware import Hardware, keep_freed_memory, use_allowed_cores
from glowserve_training.module import GlowModule
from glowserve_training.progress import Progress
from glowserve_training.saving import save
from glowserve_training.schedule import intervals, is_validation_due
from glowserve_training.validation import Validation, patience_ran_out


@dataclass(frozen=True)
class Fitted:
    """What training ended with. Weights are in the order of the module's parameters."""

    steps: int
    """Optimizer steps, fewer than planned if patience ran out."""

    last: list[Tensor]
    """The EMA after the last step."""

    best_step: int
    """The step of the best EMA."""

    best: list[Tensor]
    """The best EMA on validation images; the last if none had finite bits/dim."""


def fit(
    module: GlowModule,
    images: ImageData,
    config: RunConfig,
    *,
    resume: Path,
    logs: Path,
    hardware: Hardware,
    callbacks: Sequence[Callback],
) -> Fitted:
    """Trains, from the saved state in `resume` if there is one.

    Args:
        module: the module to train in place.
        images: training, validation and test images; the calibration images are not read.
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
    start, end = _span(resume, config)
    ema = EMA(config.average_decay)
    validation = Validation(config, images, ema)
    with _quiet_lightning():
        own = [ema, Guard(config, ema), validation, Progress(config, validation, start)]
        others = [LearningRateMonitor("step"), *callbacks, _SaveState(config, resume)]
        trainer = _trainer(config, end, hardware, logs, [*own, *others])
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
                ckpt_path=resume if start else None,
            )
        except SystemExit:  # Lightning turns Ctrl-C into this
            raise KeyboardInterrupt from None
    steps, last = trainer.global_step, ema.weights
    return Fitted(steps, last, validation.step or steps, validation.weights or last)


def _span(resume: Path, config: RunConfig) -> tuple[int, int]:
    """The steps that the saved state has had, and those with which the run ends."""
    if not resume.exists():
        return 0, config.last_step
    saved = torch.load(resume, map_location="cpu", weights_only=True)
    start: int = saved["global_step"]
    return start, start if patience_ran_out(config, start, saved["callbacks"]) else config.last_step


def _trainer(
    config: RunConfig, end: int, hardware: Hardware, logs: Path, callbacks: list[Callback]
) -> lightning.Trainer:
    _, validate_every = intervals(config.steps)
    return lightning.Trainer(
        accelerator=hardware.device,
        devices=hardware.devices,
        num_nodes=hardware.nodes,
        strategy="ddp" if hardware.processes > 1 else "auto",
        use_distributed_sampler=False,  # StepLoader yields each rank's part of the batch
        precision=cast("Any", config.precision),
        max_steps=end,
        max_epochs=1,
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
        steps=config.last_step,
        seed=config.seed,
        start=start,
        rank=trainer.global_rank,
        world_size=trainer.world_size,
        pin_memory=trainer.strategy.root_device.type == "cuda",
        labels=images.train_labels,
    )


class _SaveState(Checkpoint):
    """Saves the state after each validation. Lightning calls it after all other callbacks."""

    def __init__(self, config: RunConfig, path: Path) -> None:
        self._config, self._path = config, path

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        """Saves if a validation was due."""
        if is_validation_due(self._config, trainer.global_step):
            trainer.save_checkpoint(self._path)


class _AtomicCheckpointIO(TorchCheckpointIO):
    """Replaces Lightning's writing, which neither fsyncs nor is atomic on all file systems."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        save(checkpoint, Path(path), f"the state of step {checkpoint['global_step']}")

    def load_checkpoint(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Reads a state, from which an extended run continues: its batch is no longer the last."""
        state = super().load_checkpoint(*args, **kwargs)
        state["loops"]["fit_loop"]["epoch_loop.batch_progress"]["is_last_batch"] = False
        return state


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
