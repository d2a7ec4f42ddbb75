"""Dequantization: noise within each bin turns discrete images into continuous ones.

Uniform noise (Theis et al. 2016, section 3.1): the log-density of (q + noise) / 2^n_bits plus the log-volume of the
bins, -D n_bits ln 2, is in expectation a lower bound of the log-probability of the bins q.

Variational noise (Ho et al. 2019, section 3.1), written as a bijector of uniform noise: u becomes
v = sigmoid(flow(logit(u))), where the flow is conditional on the image; v is more probable where the model finds the
image more likely. Then -log q(v) is the log-determinant of this map, which is added to the log-likelihood like any
other, and uniform noise remains the only random input.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glowserve_training.config import GlowConfig
from glowserve_training.layers.coupling import Coupling
from glowserve_training.layers.masks import ChannelMask
from glowserve_training.layers.squeeze import Squeeze
from glowserve_training.layers.transforms import dequantization_transform_of

# Uniform noise can be 0, whose logit is infinite: noise is kept this far away from 0 and 1.
NOISE_MARGIN = 1e-6
# Couplings of variational dequantization.
_COUPLINGS = 4


@dataclass(frozen=True)
class Dequantized:
    """A batch of images in bins, with noise, [N, C, H, W] each."""

    bins: Tensor
    """0 to 2^n_bits - 1, of the noise's dtype."""

    noise: Tensor
    """v, in [0, 1]."""

    complement: Tensor
    """1 - v, with digits that the difference would lose where v is near 1."""

    log_det: Tensor
    """The log-determinant of the map from uniform noise to v, [N]."""

    def pixels(self) -> Tensor:
        """Bins with noise, [N, H, W, C]."""
        return (self.bins + self.noise).permute(0, 2, 3, 1)


class VariationalDequantization(nn.Module):
    """Logit, couplings, sigmoid; initialized as the identity. The couplings transform the two halves alternately.

    Args:
        config: the architecture.
    """

    def __init__(self, config: GlowConfig) -> None:
        super().__init__()
        self.squeeze = Squeeze()
        # After the squeeze the noise has 4C channels, and so has the image that the networks read beside it.
        masks = [ChannelMask(4 * config.channels, transforms_first=k % 2 == 1) for k in range(_COUPLINGS)]
        self.couplings = nn.ModuleList(
            Coupling(
                mask,
                dequantization_transform_of(config, mask.active_channels),
                config.pixel_width,
                actnorm=config.coupling_actnorm,
                context=4 * config.channels,
            )
            for mask in masks
        )
        self.register_load_state_dict_pre_hook(_rename_old_keys)  # type: ignore[no-untyped-call]

    def forward(self, noise: Tensor, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Uniform noise in [0, 1) to v and 1 - v in [0, 1], and log|det| [N].

        Args:
            noise: [N, C, H, W].
            image: the bins' centers, in [-0.5, 0.5), [N, C, H, W].
        """
        # log u and log(1 - u) with the margin; computing 1 - noise first keeps the second exact near u = 1.
        log_u, log_one_minus_u = (
            (x * (1 - 2 * NOISE_MARGIN) + NOISE_MARGIN).log() for x in (noise, 1 - noise)
        )
        log_det = noise[0].numel() * math.log1p(-2 * NOISE_MARGIN) - (log_u + log_one_minus_u).sum((1, 2, 3))
        z, _ = self.squeeze(log_u - log_one_minus_u)
        context, _ = self.squeeze(image)
        for coupling in self.flow_couplings():
            z, log_det_coupling = coupling(z, context)
            log_det = log_det + log_det_coupling
        z, _ = self.squeeze.inverse(z)
        log_det = log_det + (F.logsigmoid(z) + F.logsigmoid(-z)).sum((1, 2, 3))
        return torch.sigmoid(z), torch.sigmoid(-z), log_det

    def flow_couplings(self) -> list[Coupling]:
        """The couplings in forward order."""
        return cast("list[Coupling]", list(self.couplings))


def _rename_old_keys(_module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Version 0.1.0 had a list of networks."""
    old = f"{prefix}networks."
    for key in [key for key in state_dict if key.startswith(old)]:
        index, dot, rest = key.removeprefix(old).partition(".")
        state_dict[f"{prefix}couplings.{index}.network{dot}{rest}"] = state_dict.pop(key)
