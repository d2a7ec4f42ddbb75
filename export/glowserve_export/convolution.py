"""A convolution as plain float64 arrays, and its float64 reference. `GraphBuilder.conv` writes its nodes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from glowserve_training.layers import HiddenConv2d, ZeroConv2d
from torch import Tensor

from glowserve_export.float64 import conv2d

Float64Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class FoldedConv:
    """A convolution with stride 1, padded with zeros to keep height and width."""

    weight: Float64Array
    """[out, in, k, k]."""

    bias: Float64Array
    """[out]; or [out, H, W], a bias that depends on the position, which padding with other values than 0 folds to."""

    @classmethod
    def of(cls, conv: HiddenConv2d | ZeroConv2d) -> FoldedConv:
        """Folds a convolution of training, with its actnorm or its scale."""
        weight, bias = conv.weight_and_bias()
        return cls(as_array(weight), as_array(bias))

    @property
    def outputs(self) -> int:
        """Channels of the output."""
        return len(self.weight)

    def apply(self, x: Tensor) -> Tensor:
        """[N, in, H, W] to [N, out, H, W], both float64."""
        weight = torch.from_numpy(self.weight).to(x.device)
        bias = torch.from_numpy(per_channel(self.bias)).to(x.device)
        return conv2d(x, weight, padding=weight.shape[2] // 2) + bias

    def scaled(self, factor: Float64Array) -> FoldedConv:
        """Multiplies each output channel by its factor, [out]."""
        return FoldedConv(
            self.weight * factor[:, None, None, None],
            self.bias * (factor if self.bias.ndim == 1 else factor[:, None, None]),
        )

    def selected(self, outputs: npt.NDArray[np.intp]) -> FoldedConv:
        """The convolution with these of its output channels, in their order."""
        return FoldedConv(self.weight[outputs], self.bias[outputs])

    def joined(self, other: FoldedConv) -> FoldedConv:
        """The convolution with the output channels of another one, of the same input, after its own."""
        weights, biases = (self.weight, other.weight), (self.bias, other.bias)
        return FoldedConv(np.concatenate(weights), np.concatenate(biases))


def per_channel(values: Float64Array) -> Float64Array:
    """Makes values of channels, [C], broadcast over [N, C, H, W]: [C, 1, 1]. Leaves [C, H, W] as it is."""
    return values if values.ndim == 3 else values[:, None, None]


def as_array(tensor: Tensor) -> Float64Array:
    """A tensor of training as float64."""
    return np.asarray(tensor.detach().numpy(), np.float64)
