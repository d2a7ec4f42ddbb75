"""What a training run is asked for."""

from __future__ import annotations

import math
from dataclasses import dataclass

from glowserve_training.data import DataConfig
from glowserve_training.model import GlowConfig

SCHEDULES = ("cosine", "constant")
PRECISIONS = ("32-true", "bf16-mixed")


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

    schedule: str = "cosine"
    """How the learning rate goes on after the warm-up: "cosine" (to zero) or "constant"."""

    weight_decay: float = 0.0
    """Of the coupling networks' convolutions alone, decoupled from the gradient (AdamW)."""

    average_decay: float = 0.999
    """Of the exponential moving average of the weights, which is the result; 0 for the last weights themselves."""

    precision: str = "32-true"
    """"32-true" or, with the coupling networks in half, "bf16-mixed"."""

    condition_limit: float = 1e4
    """A 1x1 convolution whose condition number exceeds this is not trained on with."""

    max_returns: int = 5
    """How often training goes back to the last good state before it gives up."""

    seed: int = 0
    """Of initialization, order and noise."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "warmup_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 1 or more")
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule is {self.schedule!r}; it must be one of {', '.join(SCHEDULES)}")
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision is {self.precision!r}; it must be one of {', '.join(PRECISIONS)}")
        if not 0 <= self.average_decay < 1:
            raise ValueError(f"average_decay is {self.average_decay}; it must lie in [0, 1)")
        if not (self.weight_decay >= 0 and math.isfinite(self.weight_decay)):
            raise ValueError(f"weight_decay is {self.weight_decay}; it must be 0 or a positive number")
        if not self.condition_limit > 1:
            raise ValueError(f"condition_limit is {self.condition_limit}; it must be greater than 1")
        if self.max_returns < 0:
            raise ValueError(f"max_returns is {self.max_returns}; it must be 0 or more")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed is {self.seed}; it must lie in 0 to 2^63 - 1")
        for name in ("learning_rate", "clip_gradient_norm"):
            if not (getattr(self, name) > 0 and math.isfinite(getattr(self, name))):
                raise ValueError(f"{name} is {getattr(self, name)}; it must be a positive number")
