"""Convolutions in float64 for the reference: PyTorch's CPU kernel is slow where a convolution has few outputs.

Shapes: a convolution is [out, in, k, k].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


class Float64Convolutions(TorchFunctionMode):
    """A context in which float64 convolutions of PyTorch modules on the CPU are computed by `conv2d`."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """See `torch.overrides`."""
        if func is F.conv2d:
            func = conv2d
        return func(*args, **(kwargs or {}))


def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None = None, *geometry: Any, **named: Any) -> Tensor:
    """`torch.nn.functional.conv2d`, ten times as fast for the last convolution of a coupling network in float64.

    PyTorch copies the k * k neighbours of every input value, and then multiplies matrices. The transposed convolution
    with the reversed kernel is the same sum: it multiplies first, and then adds up the neighbours of every output.

    Args:
        x: [N, in, H, W].
        weight: [out, in, k, k].
        bias: [out].
        geometry: as in PyTorch.
        named: as in PyTorch.
    """
    outputs, inputs, kernel, _ = weight.shape
    half = kernel // 2
    same_size = named in ({"padding": half}, {"padding": (half, half)})
    if geometry or not same_size or kernel == 1 or outputs >= inputs or x.device.type != "cpu":
        return F.conv2d(x, weight, bias, *geometry, **named)
    return F.conv_transpose2d(x, weight.flip(2, 3).transpose(0, 1), bias, padding=half)
