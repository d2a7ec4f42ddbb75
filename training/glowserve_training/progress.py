"""Progress of training on stderr: a bar on a terminal, else one line after each validation."""

from __future__ import annotations

import sys
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_only
from tqdm import tqdm


class Progress(Callback):
    """Shows the current step, and bits/dim after each validation; of distributed processes, only rank 0 does.

    Args:
        steps: steps of the whole run.
        start: steps that were done before this process resumed the run.
    """

    def __init__(self, steps: int, start: int) -> None:
        self._steps = steps
        self._start = start
        self._bar: tqdm[None] | None = None

    @rank_zero_only
    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Opens the bar."""
        if self._start:
            print(f"resuming from step {self._start}", file=sys.stderr)
        self._bar = tqdm(total=self._steps, initial=self._start, desc="training", unit="step", disable=None)

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Advances the bar."""
        if self._bar is not None:
            self._bar.update()

    @rank_zero_only
    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Shows bits/dim and the worst condition number."""
        figures = ", ".join(
            f"{name} {float(trainer.callback_metrics[f'{name}_bits_per_dim']):.3f}"
            for name in ("train", "validation", "test")
        )
        figures += f", worst condition number {float(trainer.callback_metrics['condition']):.1f}"
        if self._bar is not None and not self._bar.disable:
            self._bar.set_postfix_str(f"bits/dim: {figures}")
        else:
            step = trainer.global_step
            print(f"step {step} of {self._steps}: bits/dim {figures}", file=sys.stderr, flush=True)

    def teardown(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Closes the bar, after the last step or an interruption."""
        if self._bar is not None:
            self._bar.close()
