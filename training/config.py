"""What a training run is asked for."""

from __future__ import annotations

import math
from dataclasses import dataclass

from training.data import DataConfig
from training.model import GlowConfig


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """All that decides what a run yields, but for the machine."""

    model: GlowConfig
    """The architecture."""

    data: DataConfig
    """The images."""

    steps: int
    """Optimizer steps."""

    batch_size: int
    """Images a step."""

    learning_rate: float = 1e-3
    """At its highest."""

    warmup_steps: int = 100
    """Until the learning rate is at its highest."""

    clip_gradient_norm: float = 50.0
    """Gradients longer than this are shortened to it."""

    seed: int = 0
    """Of initialization, order and noise."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "warmup_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 1 or more")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed is {self.seed}; it must lie in 0 to 2^63 - 1")
        for name in ("learning_rate", "clip_gradient_norm"):
            if not (getattr(self, name) > 0 and math.isfinite(getattr(self, name))):
                raise ValueError(f"{name} is {getattr(self, name)}; it must be a positive number")
