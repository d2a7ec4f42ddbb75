"""The exponential moving average of the weights: what is validated, saved and exported."""

from __future__ import annotations

from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn


class Average(Callback):
    """Keeps the average, and puts it in the place of the weights for validation and at the end.

    Unlike Lightning's callback of this kind it never asks the device anything, and begins with a short memory: at
    step t the decay is at most (1 + t) / (10 + t), so that the start is forgotten soon.

    Args:
        decay: how much of the average stays at each step, in [0, 1); with 0 it is the weights themselves.
    """

    def __init__(self, decay: float) -> None:
        self._decay = decay
        self._begun = False
        self.weights: list[Tensor] = []
        """One for each parameter, in their order."""

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Begins with the weights, unless a state has been loaded.

        At `on_train_start` the module has not yet set its actnorms.
        """
        if self._begun:
            return
        self._begun = True
        loaded = self.weights or list(pl_module.parameters())
        self.weights = [weight.detach().clone().to(pl_module.device) for weight in loaded]

    @torch.no_grad()
    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Moves a little towards the new weights."""
        step = trainer.global_step
        update = get_ema_multi_avg_fn(min(self._decay, (1 + step) / (10 + step)))
        update(self.weights, list(pl_module.parameters()), step)

    def on_validation_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Swaps weights and average."""
        self._swap(pl_module)

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Swaps them back."""
        self._swap(pl_module)

    @torch.no_grad()
    def put_into(self, module: lightning.LightningModule) -> None:
        """The average becomes the weights, at the end."""
        for average, parameter in zip(self.weights, module.parameters(), strict=True):
            parameter.copy_(average)

    def state_dict(self) -> dict[str, Any]:
        """The average."""
        return {"weights": self.weights}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The average of an earlier state."""
        self.weights = list(state_dict["weights"])

    @torch.no_grad()
    def _swap(self, module: lightning.LightningModule) -> None:
        for average, parameter in zip(self.weights, module.parameters(), strict=True):
            weight = parameter.clone()
            parameter.copy_(average)
            average.copy_(weight)
