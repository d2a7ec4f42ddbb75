"""Trains the tutorial's model as there: Adam, a learning rate that falls by 1 % an epoch, clipped gradients."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch
from glowserve_training.data import StepLoader
from glowserve_training.saving import save
from tutorial_model import TutorialModel

from glowserve.images import UInt8Array
from glowserve.likelihood import bits_per_dim

_BATCH, _LEARNING_RATE, _DECAY_PER_EPOCH, _CLIP_NORM = 128, 1e-3, 0.99, 1.0
# More than any run takes.
_MOST_STEPS = 10**9


class TutorialTraining:
    """A run that resumes from its file: the result of a step depends on the seed and the step alone.

    Args:
        file: the saved state; it need not exist.
        images: uint8 [N, H, W, C].
        n_bits: bits of each pixel value that the model sees.
        seed: of the weights, of the order of images, and of the noise.
        glow_block: see `TutorialModel`.
    """

    def __init__(self, file: Path, images: UInt8Array, *, n_bits: int, seed: int, glow_block: bool) -> None:
        torch.manual_seed(seed)
        _, size, _, channels = images.shape
        self.model = TutorialModel(size, channels, n_bits, glow_block=glow_block)
        self.steps = 0
        self.cpu_minutes = 0.0
        """Of the steps."""
        self._optimizer = torch.optim.Adam(self.model.parameters(), lr=_LEARNING_RATE)
        self._dimensions = size * size * channels
        self._steps_per_epoch = max(1, len(images) // _BATCH)
        self._file = file
        if file.exists():
            self._load()
        self._batches = iter(
            StepLoader(images, batch_size=_BATCH, steps=_MOST_STEPS, seed=seed, start=self.steps)
        )

    @property
    def images_seen(self) -> int:
        return self.steps * _BATCH

    def step(self) -> float:
        """Trains on the next batch; returns its bits/dim, before the update."""
        began = time.process_time()
        epoch = self.steps // self._steps_per_epoch
        self._optimizer.param_groups[0]["lr"] = _LEARNING_RATE * _DECAY_PER_EPOCH**epoch
        images, noise = next(self._batches)
        loss = bits_per_dim(self.model.log_prob(images, noise), self._dimensions).mean()
        if not loss.isfinite():
            sys.exit(f"{self._file}: step {self.steps + 1} had {loss.item()} bits/dim: training diverged")
        self._optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), _CLIP_NORM)
        self._optimizer.step()
        self.steps += 1
        self.cpu_minutes += (time.process_time() - began) / 60
        return loss.item()

    def save(self) -> None:
        """Saves the state, from which the same run resumes."""
        state = {"steps": self.steps, "cpu_minutes": self.cpu_minutes}
        state |= {"model": self.model.state_dict(), "optimizer": self._optimizer.state_dict()}
        save(state, self._file, f"the state of step {self.steps}")

    def _load(self) -> None:
        state = torch.load(self._file, weights_only=True)
        self.model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        self.steps, self.cpu_minutes = state["steps"], state["cpu_minutes"]
