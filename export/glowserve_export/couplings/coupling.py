"""A coupling: a mask, a network and a transform, in float64 and as nodes.

Shapes: N images, C H W of the coupling's input.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from glowserve_training import layers as trained
from torch import Tensor

from glowserve.image_size import ImageSize
from glowserve_export.builder import GraphBuilder
from glowserve_export.couplings.masks import Mask, fold_mask
from glowserve_export.couplings.networks import FoldedNetwork, fold_network
from glowserve_export.couplings.transforms import Transform, fold_transform
from glowserve_export.precision import FP32, Precision
from glowserve_export.terms import Term, add_term


@dataclass(frozen=True)
class FoldedCoupling:
    """Passive values pass unchanged; a network of them says how each active value is transformed."""

    mask: Mask
    """Which values are passive, and which active."""

    network: FoldedNetwork
    """Reads the passive values; its last convolution has `transform.outputs` outputs for each active channel."""

    transform: Transform
    """What happens to the active values."""

    @classmethod
    def of(cls, coupling: trained.Coupling, size: ImageSize) -> FoldedCoupling:
        """Folds a coupling of training whose input has that size."""
        network = fold_network(coupling.network)
        transform, last = fold_transform(coupling.transform, network.last)
        return cls(fold_mask(coupling.mask, size), network._replace(last=last), transform)

    @property
    def active_channels(self) -> int:
        """Channels of the active values."""
        return self.network.last.outputs // self.transform.outputs

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The output, and the log-scale of each value, 0 of the passive ones, both [N, C, H, W].

        The network reads the context, [N, context, H, W], too.
        """
        passive, active = self.mask.split(x)
        transformed, log_scale = self.transform.forward(active, self._outputs(passive, context))
        return self.mask.join(passive, transformed), self.mask.join(torch.zeros_like(passive), log_scale)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> Tensor:
        """The input."""
        passive, transformed = self.mask.split(y)
        return self.mask.join(passive, self.transform.inverse(transformed, self._outputs(passive, context)))

    def _outputs(self, passive: Tensor, context: Tensor | None) -> Tensor:
        inputs = passive if context is None else torch.cat((passive, context), dim=1)
        return self.network.outputs(inputs)

    def add_forward(
        self,
        g: GraphBuilder,
        x: str,
        name: str,
        *,
        precision: Precision = FP32,
        context: str | None = None,
    ) -> tuple[str, str | None]:
        """The nodes of `forward`: a tensor called `name`, and what its log-scales are computed from, if any."""
        passive, active = self.mask.add_split(g, x, self.active_channels, name)
        h = self._add_outputs(g, passive, name, precision, context)
        transformed, log_scale = self.transform.add_forward(g, active, h, self.active_channels, name)
        return self.mask.add_join(g, passive, transformed, name), log_scale

    def add_reverse(
        self, g: GraphBuilder, y: str, name: str, *, output: str, precision: Precision = FP32
    ) -> str:
        """The nodes of `inverse`: a tensor called `output`."""
        passive, active = self.mask.add_split(g, y, self.active_channels, name)
        h = self._add_outputs(g, passive, name, precision, None)
        active = self.transform.add_reverse(g, active, h, self.active_channels, name)
        return self.mask.add_join(g, passive, active, output)

    def _add_outputs(
        self, g: GraphBuilder, passive: str, name: str, precision: Precision, context: str | None
    ) -> str:
        if context is not None:
            passive = g.add("Concat", [passive, context], f"{name}.conditions", axis=1)
        return self.network.add(g, passive, name, precision)


LogScales = Sequence[tuple[FoldedCoupling, str]]
"""Couplings of the same height and width, each with what its log-scales are computed from."""


def add_log_det(g: GraphBuilder, scales: LogScales, size: ImageSize, name: str) -> list[Term]:
    """The log-determinant of couplings of that size; none if no coupling scales."""
    if not scales:
        return []
    parts = [tensor for tensor, _ in add_minus_log_scales(g, scales, name)]
    x = parts[0] if len(parts) == 1 else g.add("Concat", parts, f"{name}.minus_log_scales", axis=1)
    channels = sum(coupling.active_channels for coupling, _ in scales)
    return [add_term(g, x, channels, size, f"{name}.coupling_log_det")]


def add_minus_log_scales(
    g: GraphBuilder, scales: LogScales, name: str
) -> list[tuple[str, list[FoldedCoupling]]]:
    """Minus the log-scales, [N, active channels, H, W]: one tensor for all couplings of the same kind, and these."""
    groups: dict[Hashable, list[tuple[FoldedCoupling, str]]] = {}
    for coupling, tensor in scales:
        groups.setdefault((type(coupling.transform), coupling.mask.positions), []).append((coupling, tensor))
    parts = []
    for i, group in enumerate(groups.values(), 1):
        own = name if len(groups) == 1 else f"{name}.{i}"
        coupling, tensors = group[0][0], [tensor for _, tensor in group]
        x = tensors[0] if len(tensors) == 1 else g.add("Concat", tensors, f"{own}.logits", axis=1)
        x = coupling.transform.add_minus_log_scale(g, x, own)
        x = coupling.mask.add_active_only(g, x, own)
        parts.append((x, [each for each, _ in group]))
    return parts
