"""The exponential moving average (EMA) of the weights: the weights that are validated, kept and exported.

Lightning's `EMAWeightAveraging` is not used: at every step it reads its update counter from the device, which makes the
host wait; its decay is constant; and it moves keys of saved states, so that interrupted runs could not resume.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn


class EMA(Callback):
    """Updates the EMA after each step.

    At step t the decay is at most (1 + t) / (10 + t), so that the first weights are forgotten soon.

    Args:
        decay: factor of the old average in each update, in [0, 1); with 0 the EMA equals the weights.
    """

    def __init__(self, decay: float) -> None:
        self._decay = decay
        self._initialized = False
        self.weights: list[Tensor] = []
        """The averages, in the order of the module's parameters."""

    @property
    def state_key(self) -> str:
        """The key of this state in saved states; version 0.1.0 wrote it."""
        return "Average"

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Initializes the EMA with the weights, unless a state was loaded.

        In `on_train_start` the module has not initialized its actnorms yet.
        """
        if self._initialized:
            return
        self._initialized = True
        initial = self.weights or list(pl_module.parameters())
        self.weights = [weight.detach().clone().to(pl_module.device) for weight in initial]

    @torch.no_grad()
    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Updates the EMA with the new weights."""
        step = trainer.global_step
        update = get_ema_multi_avg_fn(min(self._decay, (1 + step) / (10 + step)))
        update(self.weights, list(pl_module.parameters()), step)

    @contextmanager
    def swapped_in(self, module: lightning.LightningModule) -> Iterator[None]:
        """Gives the module the EMA for its weights, for a while."""
        self._swap(module)
        try:
            yield
        finally:
            self._swap(module)

    def state_dict(self) -> dict[str, Any]:
        """The EMA."""
        return {"weights": self.weights}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The EMA of a saved state."""
        self.weights = list(state_dict["weights"])

    @torch.no_grad()
    def restore(self, weights: list[Tensor]) -> None:
        """Sets the EMA in place, when the guard rolls back."""
        for average, saved in zip(self.weights, weights, strict=True):
            average.copy_(saved)

    @torch.no_grad()
    def _swap(self, module: lightning.LightningModule) -> None:
        for average, parameter in zip(self.weights, module.parameters(), strict=True):
            weight = parameter.clone()
            parameter.copy_(average)
            average.copy_(weight)
