"""Validation during training: bits/dim of the EMA on held-out images, the best EMA so far, patience, and samples."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from glowserve.likelihood import bits_per_dim
from glowserve_training.config import RunConfig
from glowserve_training.data import HeldOutImages, evaluation_batches
from glowserve_training.data.batches import Batch
from glowserve_training.ema import EMA
from glowserve_training.model import Glow
from glowserve_training.module import GlowModule
from glowserve_training.schedule import is_validation_due, part_of

# Images that are evaluated each time; the finished model is evaluated on all. The same images and noise each time make
# the difference between two EMAs far less noisy than either figure. The test images only draw a curve.
_MOST_VALIDATION_IMAGES, _MOST_TEST_IMAGES = 512, 128
_BATCH = 64
# Samples that TensorBoard shows, of the same latents each time.
_SAMPLES, _TEMPERATURE = 16, 0.7


class Validation(Callback):
    """Evaluates the EMA regularly, keeps the best, and stops a run whose patience has run out.

    Args:
        config: the run's configuration.
        images: the validation images choose the best EMA; the test images are shown.
        ema: what is evaluated.
    """

    def __init__(self, config: RunConfig, images: HeldOutImages, ema: EMA) -> None:
        self._config = config
        self._ema = ema
        self._batches = {
            "validation": evaluation_batches(images.validation[:_MOST_VALIDATION_IMAGES], _BATCH),
            "test": evaluation_batches(images.test[:_MOST_TEST_IMAGES], _BATCH),
        }
        generator = torch.Generator().manual_seed(0)
        self._latents = _TEMPERATURE * torch.randn(_SAMPLES, config.model.dimensions, generator=generator)
        self._without_improvement = 0
        self.step = 0
        """The step of the best EMA; 0 if there is none."""
        self.bits_per_dim = math.inf
        """Of the best EMA, on the evaluated validation images."""
        self.weights: list[Tensor] = []
        """The best EMA, in the order of the module's parameters, on the CPU; empty if there is none."""

    @property
    def state_key(self) -> str:
        """The key of this state in saved states."""
        return "Validation"

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Counts validations without an improvement from 0 where an extension begins."""
        step = trainer.global_step
        if step != part_of(self._config, step).begin:
            return
        if step and not self.weights:  # of version 0.1.0, which kept none
            self._choose(step, self._evaluate(trainer, pl_module)["validation_bits_per_dim"])
        self._without_improvement = 0

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Validates when it is due, after the guard's check and before the state is saved."""
        step = trainer.global_step
        if not is_validation_due(self._config, step):
            return
        figures = self._evaluate(trainer, pl_module)
        self._choose(step, figures["validation_bits_per_dim"])
        trainer.callback_metrics.update({name: torch.tensor(value) for name, value in figures.items()})
        if isinstance(trainer.logger, TensorBoardLogger):
            trainer.logger.log_metrics(figures, step)
            self._show_samples(trainer.logger, pl_module, step)
        patience = part_of(self._config, step - 1).patience
        if patience and self._without_improvement >= patience:
            trainer.should_stop = True

    def state_dict(self) -> dict[str, Any]:
        """The best EMA and what patience counts."""
        return {
            "step": self.step,
            "bits_per_dim": self.bits_per_dim,
            "weights": self.weights,
            "without_improvement": self._without_improvement,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """What `state_dict` returned."""
        self.step, self.bits_per_dim = state_dict["step"], state_dict["bits_per_dim"]
        self.weights = list(state_dict["weights"])
        self._without_improvement = state_dict["without_improvement"]

    def _choose(self, step: int, bits: float) -> None:
        """Keeps the EMA if it is the best; one that is not finite never is."""
        if math.isfinite(bits) and bits < self.bits_per_dim:
            self.step, self.bits_per_dim, self._without_improvement = step, bits, 0
            self.weights = [weight.detach().to("cpu", copy=True) for weight in self._ema.weights]
        else:
            self._without_improvement += 1

    def _evaluate(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> dict[str, float]:
        """Bits/dim of the EMA. All processes must choose and stop alike: they take the figures of rank 0."""
        with self._ema_of(module) as model:
            figures = {
                f"{name}_bits_per_dim": _bits_per_dim(model, batches)
                for name, batches in self._batches.items()
            }
        return trainer.strategy.broadcast(figures)

    @rank_zero_only
    def _show_samples(self, logger: TensorBoardLogger, module: lightning.LightningModule, step: int) -> None:
        """Draws 16 samples, of the classes in turn if there are any. Values that are not finite do no harm."""
        # A matrix that cannot be inverted is the guard's business.
        with self._ema_of(module) as model, suppress(RuntimeError):
            latents = self._latents.to(next(model.parameters()))
            if model.class_priors is not None:
                classes = torch.arange(_SAMPLES, device=latents.device) % len(model.class_priors.mean)
                latents = model.class_priors.place(latents, classes)
            samples = model.decode(latents)
            if samples.shape[3] in (2, 4):  # TensorBoard knows no alpha
                samples = _on_white(samples)
            logger.experiment.add_images("samples", samples, step, dataformats="NHWC")

    @contextmanager
    def _ema_of(self, module: lightning.LightningModule) -> Iterator[Glow]:
        """The model with the EMA for its weights, in evaluation mode."""
        assert isinstance(module, GlowModule)
        with self._ema.swapped_in(module), torch.no_grad():
            module.eval()
            try:
                yield module.model
            finally:
                module.train()


def patience_ran_out(config: RunConfig, step: int, callbacks: dict[str, Any]) -> bool:
    """Whether a run ended with a saved state, before its last step.

    Args:
        config: the run's configuration.
        step: of the saved state.
        callbacks: the callbacks' part of the saved state.
    """
    part = part_of(config, step)
    saved = callbacks.get("Validation")
    return bool(
        saved and part.patience and step != part.begin and saved["without_improvement"] >= part.patience
    )


def _bits_per_dim(model: Glow, batches: Sequence[Batch]) -> float:
    """The mean over images, in float32 whatever the precision of training."""
    device = next(model.parameters()).device
    nats = [model.log_prob(*(tensor.to(device) for tensor in batch)).double() for batch in batches]
    return float(bits_per_dim(torch.cat(nats), model.config.dimensions).mean())


def _on_white(images: Tensor) -> Tensor:
    """Images with alpha, uint8 [N, H, W, C], on white, uint8 [N, H, W, C - 1]."""
    alpha = images[..., -1:].float() / 255
    return (images[..., :-1] * alpha + 255 * (1 - alpha)).round().byte()
