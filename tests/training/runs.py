"""Tiny training runs, callbacks that disturb or record them, and comparisons of their results."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning
import torch
from glowserve_training.checkpoint import load_checkpoint
from glowserve_training.config import RunConfig
from glowserve_training.ema import EMA
from glowserve_training.hardware import Hardware
from glowserve_training.model import Glow
from glowserve_training.run import train
from lightning.pytorch.callbacks import Callback
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

TinyRun = Callable[..., RunConfig]
CPU = Hardware(device="cpu")
PLAIN = {"preprocessing": "centre", "checkerboards": 0, "dequantization": "uniform"}
"""Fields of the model, without which a run on digits takes twice as long."""


def run(config: RunConfig, run_dir: Path, callbacks: Sequence[Callback] = ()) -> Path:
    """Trains on the CPU; returns the checkpoint's path."""
    return train(config, run_dir, hardware=CPU, callbacks=callbacks)


def weights(path: Path) -> dict[str, Tensor]:
    """A checkpoint's state_dict."""
    return load_checkpoint(path).model.state_dict()


def same_weights(one: Path, other: Path) -> bool:
    """Whether two checkpoints have the same weights, bit for bit."""
    first, second = weights(one), weights(other)
    return first.keys() == second.keys() and equal(first.values(), second.values())


def equal(one: Iterable[Tensor], other: Iterable[Tensor]) -> bool:
    """Whether tensors are equal, pair by pair."""
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def finite(tensors: Iterable[Tensor]) -> bool:
    """Whether all values of all tensors are finite."""
    return all(bool(tensor.isfinite().all()) for tensor in tensors)


def events(run_dir: Path) -> dict[str, list[tuple[int, float]]]:
    """TensorBoard's scalars: (step, value) by name."""
    log = EventAccumulator(str(run_dir / "logs"))
    log.Reload()
    return {
        name: [(event.step, event.value) for event in log.Scalars(name)] for name in log.Tags()["scalars"]
    }


def rollbacks_reported(stderr: str) -> list[str]:
    """The lines about rollbacks."""
    return [line for line in stderr.splitlines() if "rolled back to the weights" in line]


def rollbacks_saved(run_dir: Path) -> int:
    """The number of rollbacks in the saved state."""
    callbacks = torch.load(run_dir / "resume" / "last.ckpt", weights_only=True)["callbacks"]
    return int(callbacks["Guard"]["returns"])


class Interrupt(Callback):
    """Interrupts a run after an optimizer step, as Ctrl-C does."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            raise KeyboardInterrupt


class NoiseIsNaN(Callback):
    """Replaces the dequantization noise of some steps by NaN."""

    def __init__(self, *steps: int) -> None:
        self.steps = steps

    def on_train_batch_start(self, trainer: lightning.Trainer, module: Any, batch: Any, _: int) -> None:
        if trainer.global_step + 1 in self.steps:
            batch[1].fill_(math.nan)


class GradientIsInfinite(Callback):
    """Makes one value of the gradient of some steps infinite; the loss is finite."""

    def __init__(self, *steps: int) -> None:
        self.steps = steps

    def on_after_backward(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        if trainer.global_step + 1 in self.steps:
            gradient = next(p.grad for p in module.parameters() if p.grad is not None)
            gradient.view(-1)[0] = math.inf


class SpoilEMA(Callback):
    """Makes the EMA worse in each step after this one; the weights themselves are as they were."""

    def __init__(self, step: int, factor: float = 1.5) -> None:
        self.step, self.factor = step, factor

    def on_train_batch_start(self, trainer: lightning.Trainer, *_: Any) -> None:
        if trainer.global_step >= self.step:
            for weight in ema_of(trainer).weights:
                weight.mul_(self.factor)


def ema_of(trainer: lightning.Trainer) -> EMA:
    """The EMA of a run."""
    return next(callback for callback in trainer.callbacks if isinstance(callback, EMA))


@dataclass(eq=False)
class Recorder(Callback):
    """Records input and result of each step, by step; at step 0, the initial weights.

    It runs after the guard, so that it sees the state after a rollback.
    """

    rates: dict[int, float] = field(default_factory=dict)
    batches: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    weights: dict[int, list[Tensor]] = field(default_factory=dict)
    ema: dict[int, list[Tensor]] = field(default_factory=dict)
    optimizer: dict[int, dict[int, dict[str, Tensor]]] = field(default_factory=dict)
    validated: dict[int, list[Tensor]] = field(default_factory=dict)
    """The weights that validation uses."""

    def on_train_batch_start(self, trainer: lightning.Trainer, module: Any, batch: Any, _: int) -> None:
        step = trainer.global_step + 1
        self.weights.setdefault(step - 1, copies(module.parameters()))
        self.rates[step] = trainer.optimizers[0].param_groups[0]["lr"]
        self.batches[step] = (batch[0].clone(), batch[1].clone())

    def on_train_batch_end(self, trainer: lightning.Trainer, module: Any, *_: Any) -> None:
        step = trainer.global_step
        self.weights[step] = copies(module.parameters())
        self.ema[step] = copies(ema_of(trainer).weights)
        self.optimizer[step] = copy.deepcopy(trainer.optimizers[0].state_dict()["state"])

    def on_train_start(self, trainer: lightning.Trainer, module: Any) -> None:
        def record(model: Glow, _: Any) -> None:
            if not model.training:
                self.validated[trainer.global_step] = copies(model.parameters())

        module.model.register_forward_pre_hook(record)


def copies(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Copies that later steps do not change."""
    return [tensor.detach().clone() for tensor in tensors]


@dataclass(frozen=True)
class Uninterrupted:
    """A finished tiny run."""

    result: Path
    record: Recorder
