"""Maximum likelihood training as a Lightning module: loss, optimizer, gradient clipping, logging."""

from __future__ import annotations

from functools import partial
from typing import Any, cast

import lightning
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from glowserve.likelihood import bits_per_dim
from glowserve_training.config import RunConfig
from glowserve_training.data.batches import Batch, StepLoader
from glowserve_training.model import Glow
from glowserve_training.schedule import learning_rate_factor


class GlowModule(lightning.LightningModule):
    """Minimizes bits per dimension with AdamW, a linear warm-up and the configured schedule.

    Args:
        model: the model to train.
        config: the run's configuration.
    """

    def __init__(self, model: Glow, config: RunConfig) -> None:
        super().__init__()
        self.model = model
        self.learning_rate = config.learning_rate
        self._config = config
        # The loss of the current step, and the first step whose update was masked since the last check (-1: none).
        self._loss = torch.zeros(())
        self._first_bad_step = torch.tensor(-1)

    def on_train_start(self) -> None:
        """Initializes all actnorms from the first batch, before the first step trains or compiles anything."""
        self._first_bad_step = self._first_bad_step.to(self.device)
        self.set_learning_rate(float(self.schedule.base_lrs[0]))
        if self.global_step == 0:
            batch = cast("StepLoader", self.trainer.train_dataloader).dataset[0]
            with torch.no_grad(), torch.compiler.set_stance("force_eager"):
                self.model.log_prob(*self.transfer_batch_to_device(batch, self.device, 0))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The batch's mean bits per dimension."""
        loss = self._bits_per_dim(batch).mean()
        self._loss = loss.detach()
        self.log("train_bits_per_dim", self._loss)
        return loss

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clips the gradient, and masks the update on the device if the loss or the gradient is not finite.

        The fused optimizers skip an update when their attribute `found_inf` is set, which exists for mixed precision.
        The host does not wait for the device.
        """
        parameters = list(self.parameters())
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        nn.utils.clip_grads_with_norm_(parameters, self._config.clip_gradient_norm, norm)
        bad = ~(norm.isfinite() & self._loss.isfinite())
        optimizer.found_inf = bad.to(norm.dtype)  # type: ignore[attr-defined]
        newly_bad = bad & (self._first_bad_step < 0)
        self._first_bad_step = torch.where(newly_bad, self.global_step + 1, self._first_bad_step)

    @property
    def schedule(self) -> LambdaLR:
        """The schedule that is in use."""
        schedule = self.lr_schedulers()
        assert isinstance(schedule, LambdaLR)
        return schedule

    def set_learning_rate(self, highest: float) -> None:
        """Makes the schedule continue from its step with another highest learning rate.

        It does so with the same one where an extension begins: the saved state has the learning rate of the run's end.
        """
        schedule = self.schedule
        schedule.base_lrs = [highest] * len(schedule.base_lrs)
        for group, factor in zip(schedule.optimizer.param_groups, schedule.lr_lambdas, strict=True):
            group["lr"] = highest * factor(schedule.last_epoch)

    def read_first_bad_step(self) -> int | None:
        """The first step since the last call whose update was masked in any process; waits for the device."""
        step = int(self.trainer.strategy.reduce(self._first_bad_step.double(), reduce_op="max"))
        self._first_bad_step.fill_(-1)
        return None if step < 0 else step

    def configure_optimizers(self) -> Any:
        """AdamW, and a schedule that advances at every step.

        Only the coupling networks' convolutions have weight decay: decay of a log-scale, a bias or a 1x1 convolution
        would pull the flow away from the identity.
        """
        decaying = {conv.weight for conv in self.modules() if isinstance(conv, nn.Conv2d)}
        groups = [
            {
                "params": [p for p in self.parameters() if p in decaying],
                "weight_decay": self._config.weight_decay,
            },
            {"params": [p for p in self.parameters() if p not in decaying], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=self.learning_rate, fused=True)
        schedule = LambdaLR(optimizer, partial(learning_rate_factor, self._config))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _bits_per_dim(self, batch: Batch) -> Tensor:
        return bits_per_dim(self.model.log_prob(*batch), self.model.config.dimensions)
