"""Couplings (Dinh et al. 2014, 2017): a mask, a network and a transform."""

from __future__ import annotations

import torch
from torch import Tensor

from glowserve_training.layers.base import Bijector
from glowserve_training.layers.masks import Mask
from glowserve_training.layers.networks import CouplingNetwork
from glowserve_training.layers.transforms import Transform


class Coupling(Bijector):
    """Passive values pass unchanged; a network of them predicts how each active value is transformed.

    Args:
        mask: which values are passive, and which active.
        transform: what happens to the active ones.
        width: hidden channels of the network.
        actnorm: see `CouplingNetwork`.
        context: channels that the network reads beside the passive values.
    """

    def __init__(
        self, mask: Mask, transform: Transform, width: int, *, actnorm: bool = False, context: int = 0
    ) -> None:
        super().__init__()
        self.mask, self.transform = mask, transform
        outputs = transform.outputs * mask.active_channels
        self.network = CouplingNetwork(mask.passive_channels + context, outputs, width, actnorm=actnorm)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """See `Bijector`; the context is [N, context, H, W]."""
        passive, active = self.mask.split(x)
        transformed, log_scale = self.transform(active, self._outputs(passive, context))
        return self.mask.join(x, transformed), self.mask.sum(log_scale)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """See `Bijector`; the context is [N, context, H, W]."""
        passive, transformed = self.mask.split(y)
        active, log_scale = self.transform.inverse(transformed, self._outputs(passive, context))
        return self.mask.join(y, active), self.mask.sum(log_scale)

    def scale_range(self, log_scale: Tensor) -> Tensor:
        """The smallest and the largest scale of active values, [2], from the transform's log-derivatives."""
        return torch.stack(self.mask.select(log_scale).float().exp().aminmax())

    def _outputs(self, passive: Tensor, context: Tensor | None) -> Tensor:
        inputs = passive if context is None else torch.cat((passive, context), dim=1)
        outputs: Tensor = self.network(inputs).to(passive.dtype)
        return outputs
