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
from tqdm import tqdm

from glowserve_training.config import RunConfig
from glowserve_training.ema import EMA
from glowserve_training.errors import DivergedError
from glowserve_training.module import GlowModule
from glowserve_training.names import step_name
from glowserve_training.schedule import is_check_due

# Each rollback multiplies the learning rate by this.
_LEARNING_RATE_FACTOR = 0.5


class Guard(Callback):
    """Checks training every n steps, rolls back after a fault, and gives up after too many rollbacks.

    The best EMA that `Validation` keeps is never of a bad state, since a check comes before each validation.

    Args:
        config: the run's configuration: when to check, what is a fault, and how many are too many.
        ema: the EMA of the weights, which is rolled back, too.
    """

    def __init__(self, config: RunConfig, ema: EMA) -> None:
        self._config = config
        self._ema = ema
        self._rollbacks = 0
        self._snapshot_step = 0
        self._snapshot: dict[str, Any] = {}

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Takes the first snapshot. In `on_train_start` the module has not initialized its actnorms yet."""
        if not self._snapshot:
            assert isinstance(pl_module, GlowModule)
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
        if not is_check_due(self._config, trainer.global_step):
            return
        assert isinstance(pl_module, GlowModule)
        first_bad_step = pl_module.read_first_bad_step()
        conditions = pl_module.model.condition_numbers()
        self._log(trainer, pl_module, batch, conditions)
        fault = _fault(first_bad_step, conditions, self._config.condition_limit)
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

    def _take_snapshot(self, trainer: lightning.Trainer, module: GlowModule) -> None:
        self._snapshot_step = trainer.global_step
        self._snapshot = copy.deepcopy(
            {
                "module": module.state_dict(),
                "optimizer": trainer.optimizers[0].state_dict(),
                "scheduler": module.schedule.state_dict(),
                "ema": self._ema.weights,
            }
        )

    def _roll_back(self, trainer: lightning.Trainer, module: GlowModule, fault: str) -> None:
        if self._rollbacks == self._config.max_rollbacks:
            raise DivergedError(
                f"{fault}, after {self._rollbacks} rollbacks, each of which lowered the learning rate. Start again in "
                f"another run directory with {_remedy(module)}"
            )
        self._rollbacks += 1
        factor = _LEARNING_RATE_FACTOR**self._rollbacks
        module.load_state_dict(self._snapshot["module"])
        trainer.optimizers[0].load_state_dict(self._snapshot["optimizer"])
        module.schedule.load_state_dict(self._snapshot["scheduler"])
        self._ema.restore(self._snapshot["ema"])
        module.set_learning_rate(module.learning_rate * factor)
        _report(
            f"step {trainer.global_step}: {fault}; rolled back to the weights of step {self._snapshot_step}, learning "
            f"rate times {factor:g} (rollback {self._rollbacks} of {self._config.max_rollbacks})"
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
        for i, (smallest, largest) in enumerate(module.model.coupling_scales(*batch[:2]), 1):
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


@rank_zero_only
def _report(text: str) -> None:
    tqdm.write(text, file=sys.stderr)
