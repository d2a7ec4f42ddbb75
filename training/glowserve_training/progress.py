"""Progress of training on stderr: a bar on a terminal, else a line every few seconds; and a line a validation."""

from __future__ import annotations

import sys
import time
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_only
from tqdm import tqdm

from glowserve_training.config import RunConfig
from glowserve_training.description import describe_run, duration
from glowserve_training.module import GlowModule
from glowserve_training.schedule import is_validation_due
from glowserve_training.validation import Validation

# Between two lines, and between two updates of the bar's text.
_SECONDS_PER_LINE, _SECONDS_PER_TEXT = 10.0, 2.0
# The expected time follows from so many steps after the first, which allocates and may compile.
_MEASURED_STEPS = 20


class Progress(Callback):
    """Shows where a run stands; of distributed processes, only rank 0 does.

    Args:
        config: the run's configuration.
        validation: knows which validation was the best.
        start: steps that were done before this process resumed the run.
    """

    def __init__(self, config: RunConfig, validation: Validation, start: int) -> None:
        self._config = config
        self._validation = validation
        self._start = start
        self._bar: tqdm[None] | None = None
        self._first: tuple[int, float] | None = None
        """The first step of this process, and when it ended."""
        self._shown = (0, 0.0)
        """The step of the last line or text, and when it was written."""
        self._told_time = False

    @rank_zero_only
    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Describes the run and opens the bar."""
        assert isinstance(pl_module, GlowModule)
        for line in describe_run(
            self._config, pl_module.model, self._start, pl_module.device, trainer.world_size
        ):
            print(line, file=sys.stderr)
        self._bar = tqdm(
            total=self._config.last_step, initial=self._start, desc="training", unit="step", disable=None
        )

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Advances the bar, and writes what is due."""
        if self._bar is None:
            return
        self._bar.update()
        step, now = trainer.global_step, time.monotonic()
        if is_validation_due(self._config, step):
            self._print(self._validated(trainer, step))
        if self._first is None:
            self._first = self._shown = step, now
            return
        if not self._told_time and (
            step - self._first[0] >= _MEASURED_STEPS or now - self._first[1] >= _SECONDS_PER_LINE
        ):
            self._told_time = True
            left = self._config.last_step - self._start
            steps_per_second = self._steps_per_second(self._first, step, now)
            self._print(
                f"expected time: {duration(left / steps_per_second)} for {left} steps, "
                f"{steps_per_second * self._config.batch_size:.0f} images/s"
            )
        interval = _SECONDS_PER_LINE if self._bar.disable else _SECONDS_PER_TEXT
        if now - self._shown[1] >= interval:
            self._show(trainer, step, now)

    @rank_zero_only
    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Says why a run ended before its last step."""
        step = trainer.global_step
        if step < self._config.last_step and trainer.should_stop:
            self._print(
                f"training ended at step {step} of {self._config.last_step}: the best validation was at step "
                f"{self._validation.step}, and patience ran out"
            )

    def teardown(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Closes the bar, after the last step or an interruption."""
        if self._bar is not None:
            self._bar.close()

    def _validated(self, trainer: lightning.Trainer, step: int) -> str:
        """Bits/dim, the worst condition number, and whether this validation was the best."""
        figures = ", ".join(
            f"{name} {float(trainer.callback_metrics[f'{name}_bits_per_dim']):.3f}"
            for name in ("train", "validation", "test")
        )
        condition = float(trainer.callback_metrics["condition"])
        best = "" if self._validation.step == step else f"; best at step {self._validation.step}"
        where = f"step {step} of {self._config.last_step}"
        return f"{where}: bits/dim {figures}, worst condition number {condition:.1f}{best}"

    def _show(self, trainer: lightning.Trainer, step: int, now: float) -> None:
        """Writes learning rate, loss, speed and, where there is no bar to tell it, the time left."""
        assert self._bar is not None
        assert self._first is not None
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        loss = float(trainer.callback_metrics["train_bits_per_dim"])  # waits for the device
        images_per_second = self._steps_per_second(self._shown, step, now) * self._config.batch_size
        text = f"learning rate {rate:.2g}, bits/dim {loss:.3f}, {images_per_second:.0f} images/s"
        if self._bar.disable:
            left = (self._config.last_step - step) / self._steps_per_second(self._first, step, now)
            self._print(f"step {step} of {self._config.last_step}: {text}, {duration(left)} left")
        else:
            self._bar.set_postfix_str(text)
        self._shown = step, now

    @staticmethod
    def _steps_per_second(since: tuple[int, float], step: int, now: float) -> float:
        return max(1, step - since[0]) / max(1e-6, now - since[1])

    @staticmethod
    def _print(text: str) -> None:
        """A line above the bar."""
        tqdm.write(text, file=sys.stderr)
        sys.stderr.flush()
