"""One level of the multi-scale flow (Kingma and Dhariwal 2018, figure 2b)."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from glowserve_training.config import GlowConfig
from glowserve_training.layers.base import Bijector
from glowserve_training.layers.prior import PRIOR_BOUND, Split, TopPrior
from glowserve_training.layers.squeeze import Squeeze
from glowserve_training.layers.step import FlowStep, linear_parts


class Level(Bijector):
    """Squeeze, K steps of flow, and the prior of this level's latents.

    Args:
        channels: C before the squeeze.
        config: the architecture.
        top: whether this is the last level.
    """

    def __init__(self, channels: int, config: GlowConfig, *, top: bool) -> None:
        super().__init__()
        self.squeeze = Squeeze()
        self.steps = nn.ModuleList(FlowStep(4 * channels, config) for _ in range(config.steps_per_level))
        bound = PRIOR_BOUND if config.coupling_scale == "tanh" else None
        self.prior = TopPrior(4 * channels, bound) if top else Split(4 * channels, bound)
        self.checkpoint_activations = False

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[N, C, H, W] to [N, 4C, H/2, W/2]; the second half of the channels (at the top: all) is latent."""
        x, log_det = self.squeeze(x)
        self._initialize_actnorms(x)
        weights, biases, log_dets = linear_parts(self.flow_steps())
        for step, weight, bias in zip(self.flow_steps(), weights.unbind(), biases.unbind(), strict=True):
            if self.checkpoint_activations:
                x, log_det_step = checkpoint(
                    step.transform, x, weight, bias, use_reentrant=False, preserve_rng_state=False
                )
            else:
                x, log_det_step = step.transform(x, weight, bias)
            log_det = log_det + log_det_step
        log_det = log_det + x.shape[2] * x.shape[3] * log_dets.sum()
        x, log_det_prior = self.prior(x)
        return x, log_det + log_det_prior

    @torch.no_grad()
    def _initialize_actnorms(self, x: Tensor) -> None:
        """If x is the first batch in training mode, initializes the actnorms, step by step."""
        if any(step.actnorm.needs_initialization for step in self.flow_steps()):
            for step in self.flow_steps():
                x, _ = step(x)

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """See `Bijector`."""
        y, log_det = self.prior.inverse(y)
        for step in reversed(self.flow_steps()):
            y, log_det_step = step.inverse(y)
            log_det = log_det + log_det_step
        y, log_det_squeeze = self.squeeze.inverse(y)
        return y, log_det + log_det_squeeze

    def flow_steps(self) -> list[FlowStep]:
        """The steps of flow in forward order."""
        return cast("list[FlowStep]", list(self.steps))

    def condition_numbers(self) -> Tensor:
        """Condition number of each step's 1x1 convolution, [K], float64; infinity if singular or not finite."""
        convs = [step.conv1x1 for step in self.flow_steps()]
        weights = convs[0].stacked(convs)[0].double()
        finite = weights.isfinite().all(-1).all(-1)
        singular_values = torch.linalg.svdvals(torch.where(finite[:, None, None], weights, 0.0))
        conditions = singular_values[:, 0] / singular_values[:, -1]
        conditions = torch.where(finite, conditions, math.inf)
        return conditions.nan_to_num(nan=math.inf, posinf=math.inf)

    def constant_log_det(self) -> Tensor:
        """The sum of the log-determinants that do not depend on the image, at one position of [H/2, W/2]; a scalar."""
        log_det = linear_parts(self.flow_steps())[2].sum()
        return (
            log_det - self.prior.effective_log_scale().sum() if isinstance(self.prior, TopPrior) else log_det
        )
