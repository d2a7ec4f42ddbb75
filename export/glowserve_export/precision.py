"""The precision of the coupling networks, and how a network is quantized to int8. The rest of a graph is float32.

A coupling is inverted exactly whatever its network computes, as long as both graphs contain the same network. int8 is
static quantization with one scale for each output channel of a convolution (Jacob et al. 2018, "Quantization and
Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference"). A network's input and output take two
bytes a value, one for each sign, and one scale for each channel: rounding them costs far more likelihood than rounding
hidden activations.

Shapes: C H W of a level after its squeeze; a convolution is [out, in, k, k].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from glowserve_export.convolution import Float64Array, FoldedConv, per_channel
from glowserve_export.errors import ExportError

PRECISIONS = ("fp32", "fp16", "int8")

# A quantized activation is a byte and stands for 0 to 1. All other factors are folded into weights.
BYTE_SCALE = np.float32(1 / 255)
# Weights are quantized symmetrically.
_MAX_WEIGHT = 127
# Half of the int32 range: the other half is for the products that are added to a bias.
_MAX_BIAS = 2**30


@dataclass(frozen=True)
class Ranges:
    """The ranges of the activations of a coupling network on calibration images."""

    input: Float64Array
    """The largest |value| of each channel of the network's input, [in]."""

    hidden: tuple[float, float]
    """The largest value after the first ReLU, and after the second."""

    output_min: Float64Array
    """The smallest value of each output channel without its bias, [out]."""

    output_max: Float64Array
    """The largest value of each output channel without its bias, [out]."""

    def union(self, other: Ranges) -> Ranges:
        """The ranges on the calibration images of both."""
        return Ranges(
            input=np.maximum(self.input, other.input),
            hidden=(max(self.hidden[0], other.hidden[0]), max(self.hidden[1], other.hidden[1])),
            output_min=np.minimum(self.output_min, other.output_min),
            output_max=np.maximum(self.output_max, other.output_max),
        )


@dataclass(frozen=True)
class Precision:
    """The precision of the coupling networks of a flow; see `glowserve_export.calibration.calibrate`."""

    name: str
    """One of `PRECISIONS`."""

    ranges: Mapping[str, Ranges] = field(default_factory=dict)
    """int8: the ranges for each quantized network, by the name of its coupling. Other networks stay float32."""


FP32 = Precision("fp32")
FP16 = Precision("fp16")


@dataclass(frozen=True)
class QuantizedConv:
    """A convolution of bytes with weights weight * weight_scale and biases bias * bias_scale."""

    weight: npt.NDArray[np.int8]
    """[out, in, k, k]."""

    weight_scale: npt.NDArray[np.float32]
    """[out]."""

    bias: npt.NDArray[np.int32] | Float64Array
    """Integers [out]; or float64 [out, H, W] without a scale, if the bias depends on the position."""

    bias_scale: npt.NDArray[np.float32]
    """`BYTE_SCALE` * weight_scale, [out]."""


@dataclass(frozen=True)
class QuantizedNetwork:
    """An int8 coupling network."""

    input_factor: Float64Array
    """The factor on the input concatenated with itself, positive for one copy and negative for the other, [C, 1, 1]."""

    convs: tuple[QuantizedConv, QuantizedConv, QuantizedConv]
    """The first has twice the input channels, the last twice the output channels: one for each sign."""

    output_factor: Float64Array
    """The factor on the difference of the two halves of the output, [out, 1, 1]."""

    output_offset: Float64Array
    """Added after that, [out, 1, 1] or [out, H, W]."""


def quantize(network: tuple[FoldedConv, FoldedConv, FoldedConv], ranges: Ranges) -> QuantizedNetwork:
    """Quantizes the convolutions of a coupling network. Activations outside the ranges are clamped."""
    first, second, last = network
    input_max, center = _nonzero(ranges.input), (ranges.output_min + ranges.output_max) / 2
    hidden1, hidden2 = _nonzero(np.array(ranges.hidden))
    half_range = _nonzero((ranges.output_max - ranges.output_min) / 2)
    weight1 = first.weight * input_max[None, :, None, None] / hidden1
    weight3 = last.weight * hidden2 / half_range[:, None, None, None]
    offset3 = center / half_range
    return QuantizedNetwork(
        input_factor=per_channel(np.concatenate((1 / input_max, -1 / input_max))),
        convs=(
            _quantize_conv(np.concatenate((weight1, -weight1), axis=1), first.bias / hidden1),
            _quantize_conv(second.weight * hidden1 / hidden2, second.bias / hidden2),
            _quantize_conv(np.concatenate((weight3, -weight3)), np.concatenate((-offset3, offset3))),
        ),
        output_factor=per_channel(half_range),
        output_offset=per_channel(center) + per_channel(last.bias),
    )


def check_float16(conv: FoldedConv, name: str) -> None:
    """Checks that float16 can represent the weights and biases of a convolution.

    Raises:
        ExportError: one is too large.
    """
    limit = float(np.finfo(np.float16).max)
    for kind, values in (("weight", conv.weight), ("bias", conv.bias)):
        largest = float(np.abs(values).max())
        if not largest <= limit:
            raise ExportError(
                f"{name} has a {kind} of {largest:.3g}, and the largest float16 is {limit:g}; export with precision "
                "fp32"
            )


def _quantize_conv(weight: Float64Array, bias: Float64Array) -> QuantizedConv:
    """Quantizes a convolution whose input and output are in [0, 1]."""
    scale = np.abs(weight).max(axis=(1, 2, 3)) / _MAX_WEIGHT
    if bias.ndim == 1:  # the scale also bounds the bias, which may be far larger than the weights
        scale = np.maximum(scale, np.abs(bias) / (float(BYTE_SCALE) * _MAX_BIAS))
    weight_scale = _nonzero(scale).astype(np.float32)
    bias_scale = BYTE_SCALE * weight_scale
    integers = np.rint(weight / weight_scale[:, None, None, None].astype(np.float64))
    return QuantizedConv(
        weight=np.clip(integers, -_MAX_WEIGHT, _MAX_WEIGHT).astype(np.int8),
        weight_scale=weight_scale,
        bias=bias if bias.ndim == 3 else np.rint(bias / bias_scale.astype(np.float64)).astype(np.int32),
        bias_scale=bias_scale,
    )


def _nonzero(sizes: Float64Array) -> Float64Array:
    """Replaces 0 by 1, so that the result can be a divisor."""
    return np.where(sizes > 0, sizes, 1.0)
