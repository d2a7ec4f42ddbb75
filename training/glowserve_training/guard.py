"""The watch over training: what is not finite or cannot be inverted is undone, not trained on.

An update whose loss or gradient is not finite is masked on the device as it happens (see `GlowModule`). Every n
steps the guard reads whether one was, and how well each 1x1 convolution can be inverted. If all is well it keeps a
copy of the whole state in memory; if not, it goes back to the last one and on with a lower learning rate. The data
go on: a bad batch does not come again.
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

from glowserve_training.ema import Average
from glowserve_training.errors import DivergedError
from glowserve_training.module import GlowModule
from glowserve_training.names import step_name

# How much lower the learning rate is after each return.
_LOWER = 0.5


class Guard(Callback):
    """Looks every n steps; goes back when it has to; gives up when that does not help.

    Args:
        every: n.
        steps: of the whole run; the guard looks after the last one, too.
        condition_limit: what no 1x1 convolution's condition number may exceed.
        max_returns: how often it goes back before it gives up.
        average: part of the state.
    """

    def __init__(
        self, *, every: int, steps: int, condition_limit: float, max_returns: int, average: Average
    ) -> None:
        self._every = every
        self._steps = steps
        self._condition_limit = condition_limit
        self._max_returns = max_returns
        self._average = average
        self._returns = 0
        self._good_step = 0
        self._good: dict[str, Any] = {}

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Keeps the first state to go back to. At `on_train_start` the module has not yet set its actnorms."""
        if not self._good:
            self._keep(trainer, pl_module)

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Looks, every n steps; Lightning saves after it has asked all other callbacks."""
        step = trainer.global_step
        if step % self._every and step != self._steps:
            return
        assert isinstance(pl_module, GlowModule)
        first_bad = pl_module.read_first_bad_step()
        conditions = pl_module.model.condition_numbers()
        self._log(trainer, pl_module, batch, conditions)
        fault = _fault(first_bad, conditions, self._condition_limit)
        if fault is None:
            self._keep(trainer, pl_module)
        else:
            self._go_back(trainer, pl_module, fault)

    def state_dict(self) -> dict[str, Any]:
        """How often it went back; the lowered learning rate is in the schedule's own state."""
        return {"returns": self._returns}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """From an earlier state."""
        self._returns = state_dict["returns"]

    def _keep(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        self._good_step = trainer.global_step
        self._good = copy.deepcopy(
            {
                "module": module.state_dict(),
                "optimizer": trainer.optimizers[0].state_dict(),
                "schedule": _schedule(trainer).state_dict(),
                "average": self._average.weights,
            }
        )

    def _go_back(self, trainer: lightning.Trainer, module: GlowModule, fault: str) -> None:
        step = trainer.global_step
        if self._returns == self._max_returns:
            raise DivergedError(
                f"{fault}, after training had gone back {self._returns} times and lowered the learning rate each "
                f"time. Start again in another run directory with {_remedy(module)}"
            )
        self._returns += 1
        schedule, lowered = _schedule(trainer), _LOWER**self._returns
        module.load_state_dict(self._good["module"])
        trainer.optimizers[0].load_state_dict(self._good["optimizer"])
        schedule.load_state_dict(self._good["schedule"])
        with torch.no_grad():
            for average, good in zip(self._average.weights, self._good["average"], strict=True):
                average.copy_(good)
        schedule.base_lrs = [module.learning_rate * lowered] * len(schedule.base_lrs)
        for group, factor in zip(trainer.optimizers[0].param_groups, schedule.lr_lambdas, strict=True):
            group["lr"] = schedule.base_lrs[0] * factor(schedule.last_epoch)
        self._say(
            f"step {step}: {fault}; back to the weights of step {self._good_step}, learning rate times {lowered:g} "
            f"(return {self._returns} of {self._max_returns})"
        )

    @rank_zero_only
    def _say(self, text: str) -> None:
        tqdm.write(text, file=sys.stderr)

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


def _fault(first_bad: int | None, conditions: list[list[float]], limit: float) -> str | None:
    """What is wrong, if anything; a singular matrix makes the loss infinite, and then both are told."""
    faults = []
    worst, level, step = max(
        (condition, i, k) for i, row in enumerate(conditions, 1) for k, condition in enumerate(row, 1)
    )
    if worst > limit:
        what = "is singular" if math.isinf(worst) else f"has condition number {worst:.3g}, over {limit:g}"
        faults.append(f"the 1x1 convolution of {step_name(level, step)} {what}")
    if first_bad is not None:
        faults.append(f"the loss or its gradient was not finite at step {first_bad}")
    return " and ".join(faults) or None


def _remedy(module: GlowModule) -> str:
    rate = f"a learning rate below {module.learning_rate:g}"
    if module.model.config.parametrization == "plain":
        return f"parametrization 'lu' or 'orthogonal', or {rate}"
    return rate


def _schedule(trainer: lightning.Trainer) -> LambdaLR:
    schedule = trainer.lr_scheduler_configs[0].scheduler
    assert isinstance(schedule, LambdaLR)
    return schedule
