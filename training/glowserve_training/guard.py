"""The guard: undoes steps that are not finite or that make a 1x1 convolution ill-conditioned.

`GlowModule` masks an update on the device when its loss or gradient is not finite. Every n steps the guard reads
whether one was masked, and the condition number of each 1x1 convolution. If all is well, it keeps a copy of the whole
state in memory; if not, it restores the last copy and lowers the learning rate. The data continue with the next batch.
"""

from __future__ import annotations

import copy
import math
import sys
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_only
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm

from glowserve_training.ema import EMA
from glowserve_training.errors import DivergedError
from glowserve_training.module import GlowModule
from glowserve_training.names import step_name

# Each rollback multiplies the learning rate by this.
_LEARNING_RATE_FACTOR = 0.5


class Guard(Callback):
    """Checks training every n steps, rolls back after a fault, and gives up after too many rollbacks.

    Args:
        every: n.
        steps: steps of the whole run; the guard checks after the last one, too.
        condition_limit: largest condition number of a 1x1 convolution that is not a fault.
        max_rollbacks: rollbacks after which the next fault ends training.
        ema: the EMA of the weights, which is rolled back, too.
    """

    def __init__(
        self, *, every: int, steps: int, condition_limit: float, max_rollbacks: int, ema: EMA
    ) -> None:
        self._every = every
        self._steps = steps
        self._condition_limit = condition_limit
        self._max_rollbacks = max_rollbacks
        self._ema = ema
        self._rollbacks = 0
        self._snapshot_step = 0
        self._snapshot: dict[str, Any] = {}

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Takes the first snapshot. In `on_train_start` the module has not initialized its actnorms yet."""
        if not self._snapshot:
            self._take_snapshot(trainer, pl_module)

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Checks every n steps. Lightning calls this before `ModelCheckpoint`, so that only good states are saved."""
        step = trainer.global_step
        if step % self._every and step != self._steps:
            return
        assert isinstance(pl_module, GlowModule)
        first_bad_step = pl_module.read_first_bad_step()
        conditions = pl_module.model.condition_numbers()
        self._log(trainer, pl_module, batch, conditions)
        fault = _fault(first_bad_step, conditions, self._condition_limit)
        if fault is None:
            self._take_snapshot(trainer, pl_module)
        else:
            self._roll_back(trainer, pl_module, fault)

    def state_dict(self) -> dict[str, Any]:
        """The number of rollbacks, under the key of version 0.1.0. The scheduler's state has the learning rate."""
        return {"returns": self._rollbacks}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The number of rollbacks of a saved state."""
        self._rollbacks = state_dict["returns"]

    def _take_snapshot(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        self._snapshot_step = trainer.global_step
        self._snapshot = copy.deepcopy(
            {
                "module": module.state_dict(),
                "optimizer": trainer.optimizers[0].state_dict(),
                "scheduler": _scheduler(trainer).state_dict(),
                "ema": self._ema.weights,
            }
        )

    def _roll_back(self, trainer: lightning.Trainer, module: GlowModule, fault: str) -> None:
        if self._rollbacks == self._max_rollbacks:
            raise DivergedError(
                f"{fault}, after {self._rollbacks} rollbacks, each of which lowered the learning rate. Start again in "
                f"another run directory with {_remedy(module)}"
            )
        self._rollbacks += 1
        factor = _LEARNING_RATE_FACTOR**self._rollbacks
        module.load_state_dict(self._snapshot["module"])
        trainer.optimizers[0].load_state_dict(self._snapshot["optimizer"])
        _scheduler(trainer).load_state_dict(self._snapshot["scheduler"])
        self._ema.restore(self._snapshot["ema"])
        _set_learning_rate(trainer, module.learning_rate * factor)
        _report(
            f"step {trainer.global_step}: {fault}; rolled back to the weights of step {self._snapshot_step}, learning "
            f"rate times {factor:g} (rollback {self._rollbacks} of {self._max_rollbacks})"
        )

    @rank_zero_only
    def _log(
        self, trainer: lightning.Trainer, module: GlowModule, batch: Any, conditions: list[list[float]]
    ) -> None:
        figures = {
            f"condition/{step_name(i, k)}": condition
            for i, level in enumerate(conditions, 1)
            for k, condition in enumerate(level, 1)
        }
        figures["condition"] = max(figures.values())
        for i, (smallest, largest) in enumerate(module.model.coupling_scales(*batch), 1):
            figures[f"coupling_scale/level{i}/smallest"] = smallest
            figures[f"coupling_scale/level{i}/largest"] = largest
        trainer.callback_metrics["condition"] = torch.tensor(figures["condition"])
        if trainer.logger is not None:
            trainer.logger.log_metrics(figures, trainer.global_step)


def _fault(first_bad_step: int | None, conditions: list[list[float]], limit: float) -> str | None:
    """Describes what is wrong, if anything. A singular matrix makes the loss infinite: then both are reported."""
    faults = []
    worst, level, step = max(
        (condition, i, k) for i, row in enumerate(conditions, 1) for k, condition in enumerate(row, 1)
    )
    if worst > limit:
        state = "is singular" if math.isinf(worst) else f"has condition number {worst:.3g}, over {limit:g}"
        faults.append(f"the 1x1 convolution of {step_name(level, step)} {state}")
    if first_bad_step is not None:
        faults.append(f"the loss or its gradient was not finite at step {first_bad_step}")
    return " and ".join(faults) or None


def _remedy(module: GlowModule) -> str:
    rate = f"a learning rate below {module.learning_rate:g}"
    if module.model.config.parametrization == "plain":
        return f"parametrization 'qlu' or 'orthogonal', or {rate}"
    return rate


def _set_learning_rate(trainer: lightning.Trainer, highest: float) -> None:
    """Makes the schedule continue from its step with another highest learning rate."""
    scheduler = _scheduler(trainer)
    scheduler.base_lrs = [highest] * len(scheduler.base_lrs)
    for group, factor in zip(trainer.optimizers[0].param_groups, scheduler.lr_lambdas, strict=True):
        group["lr"] = highest * factor(scheduler.last_epoch)


def _scheduler(trainer: lightning.Trainer) -> LambdaLR:
    scheduler = trainer.lr_scheduler_configs[0].scheduler
    assert isinstance(scheduler, LambdaLR)
    return scheduler


@rank_zero_only
def _report(text: str) -> None:
    tqdm.write(text, file=sys.stderr)
