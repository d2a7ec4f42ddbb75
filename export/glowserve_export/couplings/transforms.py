"""Transforms of couplings: how the output of a network moves and scales the active values.

Shapes: A active channels; the network's output h is [N, A * outputs, H, W], shifts first.
"""

from __future__ import annotations

import abc
import math
from dataclasses import dataclass
from functools import singledispatch
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from glowserve_training.layers import transforms as trained
from torch import Tensor

from glowserve_export.builder import GraphBuilder
from glowserve_export.convolution import Float64Array, FoldedConv, as_array, per_channel
from glowserve_export.errors import no_folded_form


class Transform(abc.ABC):
    """A monotonic map of each active value."""

    @property
    @abc.abstractmethod
    def outputs(self) -> int:
        """Outputs of the network for each active channel."""

    @abc.abstractmethod
    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """The transformed values, and the log-derivative at each, [N, A, H, W]."""

    @abc.abstractmethod
    def inverse(self, y: Tensor, h: Tensor) -> Tensor:
        """The values before the transform, [N, A, H, W]."""

    @abc.abstractmethod
    def add_forward(
        self, g: GraphBuilder, x: str, h: str, channels: int, name: str
    ) -> tuple[str, str | None]:
        """The nodes of `forward` for A = channels: y, and what `add_minus_log_scale` reads; None without a scale."""

    @abc.abstractmethod
    def add_reverse(self, g: GraphBuilder, y: str, h: str, channels: int, name: str) -> str:
        """The nodes of `inverse`."""

    def add_minus_log_scale(self, g: GraphBuilder, x: str, name: str) -> str:
        """Minus the log-derivatives of several couplings with this kind of transform, from what `add_forward` returned.

        That may be minus the log-derivatives already, as it is here.
        """
        return x


class Shift(Transform):
    """y = x + h, the additive coupling."""

    outputs = 1

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """See `Transform`."""
        return x + h, torch.zeros_like(h)

    def inverse(self, y: Tensor, h: Tensor) -> Tensor:
        """See `Transform`."""
        return y - h

    def add_forward(
        self, g: GraphBuilder, x: str, h: str, channels: int, name: str
    ) -> tuple[str, str | None]:
        """See `Transform`."""
        return g.add("Add", [x, h], f"{name}.shifted"), None

    def add_reverse(self, g: GraphBuilder, y: str, h: str, channels: int, name: str) -> str:
        """See `Transform`."""
        return g.add("Sub", [y, h], f"{name}.unshifted")


class _Affine(Transform):
    """y = (x + shift) * exp(log_scale)."""

    outputs = 2
    scales: ClassVar[str] = "Mul"
    """The operator that scales x by the tensor that `_add_scale` makes."""
    unscales: ClassVar[str] = "Div"
    """The operator that undoes it."""

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """See `Transform`."""
        shift, raw = h.chunk(2, dim=1)
        log_scale = self._log_scale(raw)
        return (x + shift) * log_scale.exp(), log_scale

    def inverse(self, y: Tensor, h: Tensor) -> Tensor:
        """See `Transform`."""
        shift, raw = h.chunk(2, dim=1)
        return y * (-self._log_scale(raw)).exp() - shift

    def add_forward(
        self, g: GraphBuilder, x: str, h: str, channels: int, name: str
    ) -> tuple[str, str | None]:
        """See `Transform`."""
        shift, raw = g.split(h, [channels] * 2, f"{name}.shift_logit")
        x = g.add("Add", [x, shift], f"{name}.shifted")
        scale, log_scale = self._add_scale(g, raw, name)
        return g.add(self.scales, [x, scale], f"{name}.scaled"), log_scale

    def add_reverse(self, g: GraphBuilder, y: str, h: str, channels: int, name: str) -> str:
        """See `Transform`."""
        shift, raw = g.split(h, [channels] * 2, f"{name}.shift_logit")
        scale, _ = self._add_scale(g, raw, name)
        y = g.add(self.unscales, [y, scale], f"{name}.unscaled")
        return g.add("Sub", [y, shift], f"{name}.unshifted")

    @abc.abstractmethod
    def _log_scale(self, raw: Tensor) -> Tensor:
        """The log-scale of the second half of the network's outputs."""

    @abc.abstractmethod
    def _add_scale(self, g: GraphBuilder, raw: str, name: str) -> tuple[str, str]:
        """The scale, or its inverse if x is divided by it; and what `add_minus_log_scale` reads."""


class SigmoidScale(_Affine):
    """The scale sigmoid(logit)."""

    def _log_scale(self, raw: Tensor) -> Tensor:
        return F.logsigmoid(raw)

    def _add_scale(self, g: GraphBuilder, raw: str, name: str) -> tuple[str, str]:
        return g.add("Sigmoid", [raw], f"{name}.scale"), raw

    def add_minus_log_scale(self, g: GraphBuilder, x: str, name: str) -> str:
        """See `Transform`; log sigmoid(logit) = -softplus(-logit)."""
        x = g.add("Neg", [x], f"{name}.minus_logits")
        return g.add("Softplus", [x], f"{name}.minus_log_scale")


class InverseSigmoidScale(_Affine):
    """The scale 1 / sigmoid(logit)."""

    scales, unscales = "Div", "Mul"

    def _log_scale(self, raw: Tensor) -> Tensor:
        return -F.logsigmoid(raw)

    def _add_scale(self, g: GraphBuilder, raw: str, name: str) -> tuple[str, str]:
        return g.add("Sigmoid", [raw], f"{name}.scale"), raw

    def add_minus_log_scale(self, g: GraphBuilder, x: str, name: str) -> str:
        """See `Transform`."""
        x = g.add("Neg", [x], f"{name}.minus_logits")
        x = g.add("Softplus", [x], f"{name}.log_scale")
        return g.add("Neg", [x], f"{name}.minus_log_scale")


class ExpScale(_Affine):
    """The scale exp(logit)."""

    def _log_scale(self, raw: Tensor) -> Tensor:
        return raw

    def _add_scale(self, g: GraphBuilder, raw: str, name: str) -> tuple[str, str]:
        return g.add("Exp", [raw], f"{name}.scale"), raw

    def add_minus_log_scale(self, g: GraphBuilder, x: str, name: str) -> str:
        """See `Transform`."""
        return g.add("Neg", [x], f"{name}.minus_logits")


class DoubleSigmoidScale(_Affine):
    """The scale 2 sigmoid(logit)."""

    def _log_scale(self, raw: Tensor) -> Tensor:
        return F.logsigmoid(raw) + math.log(2)

    def _add_scale(self, g: GraphBuilder, raw: str, name: str) -> tuple[str, str]:
        half = g.add("Sigmoid", [raw], f"{name}.half_scale")
        return g.add("Mul", [half, g.constant("two", 2.0)], f"{name}.scale"), raw

    def add_minus_log_scale(self, g: GraphBuilder, x: str, name: str) -> str:
        """See `Transform`."""
        x = g.add("Neg", [x], f"{name}.minus_logits")
        x = g.add("Softplus", [x], f"{name}.minus_log_sigmoid")
        return g.add("Sub", [x, g.constant(f"{name}.ln2", math.log(2))], f"{name}.minus_log_scale")


@dataclass(frozen=True, eq=False)
class TanhScale(_Affine):
    """The scale exp(-bound * tanh(logit)), bounded in both directions.

    Nodes compute minus the log-scale: sums of log-scales need it, and samples are multiplied instead of divided.
    """

    bound: Float64Array
    """The largest |log_scale| of each channel, [A]."""

    scales, unscales = "Div", "Mul"

    def _log_scale(self, raw: Tensor) -> Tensor:
        return -torch.from_numpy(per_channel(self.bound)).to(raw.device) * torch.tanh(raw)

    def _add_scale(self, g: GraphBuilder, raw: str, name: str) -> tuple[str, str]:
        bound = g.constant(f"{name}.bound", per_channel(self.bound))
        minus_log_scale = g.add(
            "Mul", [g.add("Tanh", [raw], f"{name}.tanh"), bound], f"{name}.minus_log_scale"
        )
        return g.add("Exp", [minus_log_scale], f"{name}.inverse_scale"), minus_log_scale


@singledispatch
def fold_transform(
    transform: trained.Transform,
    last: FoldedConv,  # noqa: ARG001  # registered functions use it
) -> tuple[Transform, FoldedConv]:
    """Folds a transform of training and, with it, the last convolution of its network, which takes up constants."""
    raise no_folded_form(transform)


@fold_transform.register
def _(_: trained.Additive, last: FoldedConv) -> tuple[Transform, FoldedConv]:
    return Shift(), last


@fold_transform.register
def _(_: trained.SigmoidAffine, last: FoldedConv) -> tuple[Transform, FoldedConv]:
    return SigmoidScale(), shift_and_logit(last)


@fold_transform.register
def _(_: trained.DoubleSigmoid, last: FoldedConv) -> tuple[Transform, FoldedConv]:
    return DoubleSigmoidScale(), last


@fold_transform.register
def _(transform: trained.TanhAffine, last: FoldedConv) -> tuple[Transform, FoldedConv]:
    bound = as_array(transform.bound()).reshape(-1)
    return TanhScale(bound), last.scaled(np.concatenate((np.ones_like(bound), -1 / bound)))


def shift_and_logit(conv: FoldedConv) -> FoldedConv:
    """Folds the constant that the paper's coupling adds to its logits, the second half of the output channels."""
    bias = conv.bias.copy()
    bias[len(bias) // 2 :] += trained.SCALE_SHIFT
    return FoldedConv(conv.weight, bias)
