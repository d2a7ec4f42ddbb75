"""Maximum likelihood on Lightning: the loss, the optimizer, and what is logged."""

from __future__ import annotations

import math
from typing import Any

import lightning
import torch
from torch import Tensor

from training import quantization
from training.data.batches import Batch
from training.model import Glow


class GlowModule(lightning.LightningModule):
    """Minimizes bits per dimension with Adam, a linear warm-up and a cosine decay to zero.

    Args:
        model: what is trained.
        learning_rate: at its highest, after the warm-up.
        warmup_steps: until then it rises linearly.
        steps: of the whole run.
    """

    def __init__(self, model: Glow, *, learning_rate: float, warmup_steps: int, steps: int) -> None:
        super().__init__()
        self.model = model
        self._learning_rate = learning_rate
        self._warmup_steps = warmup_steps
        self._steps = steps

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The batch's mean bits per dimension."""
        loss = self._bits_per_dim(batch).mean()
        self.log("train_bits_per_dim", loss.detach(), prog_bar=True)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Logs the same for images that are not trained on."""
        bits = self._bits_per_dim(batch)
        self.log("validation_bits_per_dim", bits.mean(), batch_size=len(bits), prog_bar=True)

    def configure_optimizers(self) -> Any:
        """Adam and its schedule, which moves at every step."""
        optimizer = torch.optim.Adam(self.parameters(), lr=self._learning_rate)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _factor(self, step: int) -> float:
        warmup = min(1.0, (step + 1) / self._warmup_steps)
        return warmup * 0.5 * (1 + math.cos(math.pi * min(1.0, step / self._steps)))

    def _bits_per_dim(self, batch: Batch) -> Tensor:
        return quantization.bits_per_dim(self.model.log_prob(*batch), self.model.config.dimensions)
