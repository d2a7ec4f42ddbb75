"""What the coupling networks compute in; all else in a graph is float32.

A coupling layer is undone exactly whatever its network computes, as long as both graphs hold the same network. int8 is
static quantization with a scale for each output channel of a convolution (Jacob et al. 2018, "Quantization and
training of neural networks for efficient integer-arithmetic-only inference"). What a network reads and what it yields
take two bytes a value, one for each sign, and a scale for each channel: there, rounding costs far more likelihood than
in between. A network that still costs too much stays float32.

Shapes: at a level, C channels after the squeeze, H = W places a side; a convolution is [out, in, k, k].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from glowserve_export.baked import BakedConv, BakedNetwork, Float64Array
from glowserve_export.errors import ExportError

PRECISIONS = ("fp32", "fp16", "int8")

# A quantized activation is a byte of [0, 1]; every other factor is in the weights on either side of it.
BYTE_SCALE = np.float32(1 / 255)
# Weights are quantized symmetrically.
_LARGEST_WEIGHT = 127
# Half of 32 bits: biases are added up with products.
_LARGEST_BIAS = 2**30


@dataclass(frozen=True)
class Ranges:
    """What the activations of a coupling network reached on real images."""

    read: Float64Array
    """The largest |value| of each channel that it reads, [C/2]."""

    hidden: tuple[float, float]
    """The largest value behind the first ReLU, and behind the second."""

    lowest: Float64Array
    """Of each channel that it yields, less the bias, [out]."""

    highest: Float64Array
    """Of each channel that it yields, less the bias, [out]."""

    def joined(self, other: Ranges) -> Ranges:
        """What both reached."""
        return Ranges(
            read=np.maximum(self.read, other.read),
            hidden=(max(self.hidden[0], other.hidden[0]), max(self.hidden[1], other.hidden[1])),
            lowest=np.minimum(self.lowest, other.lowest),
            highest=np.maximum(self.highest, other.highest),
        )


@dataclass(frozen=True)
class Precision:
    """What the coupling networks of the flow compute in; `glowserve_export.calibration` makes it."""

    name: str
    """One of `PRECISIONS`."""

    ranges: Mapping[str, Ranges] = field(default_factory=dict)
    """Of int8, by the name of the step; a step that is missing stays float32."""


FP32 = Precision("fp32")
FP16 = Precision("fp16")


@dataclass(frozen=True)
class QuantizedConv:
    """A convolution that reads bytes; it stands for weight * weight_scale and bias * bias_scale."""

    weight: npt.NDArray[np.int8]
    """[out, in, k, k]."""

    weight_scale: npt.NDArray[np.float32]
    """[out]."""

    bias: npt.NDArray[np.int32] | Float64Array
    """[out], integers; or [out, H, W], where it differs from place to place, and is added as it is."""

    bias_scale: npt.NDArray[np.float32]
    """Of integers: `BYTE_SCALE` * weight_scale, [out]."""


@dataclass(frozen=True)
class QuantizedNetwork:
    """A coupling network of bytes."""

    read_factor: Float64Array
    """What is read, twice over, is multiplied by this before it becomes bytes, which know no sign, [C, 1, 1]."""

    convs: tuple[QuantizedConv, QuantizedConv, QuantizedConv]
    """With twice the channels in at the beginning, and twice the channels out at the end."""

    factor: Float64Array
    """Of the output's first half less its second, [out, 1, 1]."""

    offset: Float64Array
    """What is then added, [out, 1, 1] or [out, H, W]."""


def quantized(network: BakedNetwork, ranges: Ranges) -> QuantizedNetwork:
    """A coupling network in bytes. What lies beyond a range is drawn back to its end."""
    first, second, last = network
    read, middle = _or_one(ranges.read), (ranges.lowest + ranges.highest) / 2
    hidden1, hidden2 = _or_one(np.array(ranges.hidden))
    reach = _or_one((ranges.highest - ranges.lowest) / 2)
    weight1 = first.weight * read[None, :, None, None] / hidden1
    weight3 = last.weight * hidden2 / reach[:, None, None, None]
    return QuantizedNetwork(
        read_factor=at_places(np.concatenate((1 / read, -1 / read))),
        convs=(
            _quantized_conv(np.concatenate((weight1, -weight1), axis=1), first.bias / hidden1),
            _quantized_conv(second.weight * hidden1 / hidden2, second.bias / hidden2),
            _quantized_conv(
                np.concatenate((weight3, -weight3)), np.concatenate((-middle / reach, middle / reach))
            ),
        ),
        factor=at_places(reach),
        offset=at_places(middle) + at_places(last.bias),
    )


def at_places(values: Float64Array) -> Float64Array:
    """Values of channels, [out] or [out, H, W], as [out, 1, 1] or as they are."""
    return values if values.ndim == 3 else values[:, None, None]


def check_half(conv: BakedConv, name: str) -> None:
    """Refuses a convolution that float16 cannot hold.

    Raises:
        ExportError: a weight or a bias is too large.
    """
    limit = float(np.finfo(np.float16).max)
    for kind, values in (("weight", conv.weight), ("bias", conv.bias)):
        largest = float(np.abs(values).max())
        if not largest <= limit:
            raise ExportError(
                f"{name} has a {kind} of {largest:.3g}, and float16 ends at {limit:g}; export with precision fp32"
            )


def _quantized_conv(weight: Float64Array, bias: Float64Array) -> QuantizedConv:
    """Of what reads and yields values of [0, 1]."""
    scale = np.abs(weight).max(axis=(1, 2, 3)) / _LARGEST_WEIGHT
    if bias.ndim == 1:  # one that is vast beside the weights must still fit
        scale = np.maximum(scale, np.abs(bias) / (float(BYTE_SCALE) * _LARGEST_BIAS))
    weight_scale = _or_one(scale).astype(np.float32)
    bias_scale = BYTE_SCALE * weight_scale
    integers = np.rint(weight / weight_scale[:, None, None, None].astype(np.float64))
    return QuantizedConv(
        weight=np.clip(integers, -_LARGEST_WEIGHT, _LARGEST_WEIGHT).astype(np.int8),
        weight_scale=weight_scale,
        bias=bias if bias.ndim == 3 else np.rint(bias / bias_scale.astype(np.float64)).astype(np.int32),
        bias_scale=bias_scale,
    )


def _or_one(sizes: Float64Array) -> Float64Array:
    """A size of 0 divides nothing: where there is none, 1."""
    return np.where(sizes > 0, sizes, 1.0)
