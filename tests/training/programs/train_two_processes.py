"""Trains in two processes that record their weights: one run with faults, one with little patience, one that is killed.

    python train_two_processes.py DATA OUT SIZES KILLED_AFTER

They are in one program because starting processes takes most of the time. SIZES is JSON.

OUT/faults/, OUT/impatient/, OUT/killed/          run directories
OUT/records/RUN.step[N].rank[R].pt                weights after step N
OUT/records/killed.gradient.rank[R].pt            the gradient of the first step
"""

from __future__ import annotations

import json
import math
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from glowserve_training.ema import EMA
from glowserve_training.hardware import Hardware
from glowserve_training.presets import run_config
from glowserve_training.run import train
from lightning.pytorch.callbacks import Callback


class Record(Callback):
    """Saves the weights of every step and the gradient of the first."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix

    def save(self, name: str, trainer: Any, tensors: Any) -> None:
        torch.save(tensors, f"{self.prefix}.{name}.rank{trainer.global_rank}.pt")

    def on_train_batch_start(self, trainer: Any, module: Any, *_: Any) -> None:
        if trainer.global_step == 0:
            self.save("step0", trainer, module.model.state_dict())

    def on_before_optimizer_step(self, trainer: Any, module: Any, *_: Any) -> None:
        if trainer.global_step == 0:
            gradient = {name: p.grad for name, p in module.model.named_parameters()}
            self.save("gradient", trainer, gradient)

    def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
        self.save(f"step{trainer.global_step}", trainer, module.model.state_dict())


class FaultsInRank1(Callback):
    """In rank 1 alone: NaN noise at step 3, and at step 7 an infinite loss with a finite gradient."""

    def on_train_start(self, trainer: Any, module: Any) -> None:
        bits_per_dim = module._bits_per_dim
        module._bits_per_dim = lambda batch: bits_per_dim(batch) + (math.inf if self.is_at(trainer, 7) else 0)

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, _: int) -> None:
        if self.is_at(trainer, 3):
            batch[1].fill_(math.nan)

    def is_at(self, trainer: Any, step: int) -> bool:
        return bool(trainer.training and trainer.global_rank == 1 and trainer.global_step + 1 == step)


class SpoilEMAInRank0(Callback):
    """Makes the EMA worse after step 4, in rank 0 alone."""

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        if trainer.global_rank == 0 and trainer.global_step >= 4:
            for callback in trainer.callbacks:
                if isinstance(callback, EMA):
                    for weight in callback.weights:
                        weight.mul_(2)


class Exit(Callback):
    """Ends the process after a step without any cleanup, as SIGKILL does."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == self.step:
            os._exit(9)


def main() -> None:
    data, out, sizes, killed_after = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3]), int(sys.argv[4])
    torch.set_num_threads(1)
    hardware = Hardware(device="cpu", devices=2)
    records = out / "records"
    config = run_config(data, **sizes)
    train(config, out / "faults", hardware=hardware, callbacks=[FaultsInRank1(), Record(f"{records}/faults")])
    impatient = replace(config, average_decay=0.9, patience=2)
    train(
        impatient,
        out / "impatient",
        hardware=hardware,
        callbacks=[SpoilEMAInRank0(), Record(f"{records}/impatient")],
    )
    train(
        config, out / "killed", hardware=hardware, callbacks=[Record(f"{records}/killed"), Exit(killed_after)]
    )


main()
