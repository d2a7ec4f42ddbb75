"""The reference of a public implementation's model, which has no PyTorch model here: its folded weights in float64.

Shapes: as in `glowserve_export.reference`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from glowserve_training.layers import Squeeze
from glowserve_training.names import step_name
from glowserve_training.quantization import to_bins
from torch import Tensor

from glowserve.images import UInt8Array
from glowserve.runtime.engine import Float32Array
from glowserve_export.float64 import conv2d
from glowserve_export.folded import (
    Float64Array,
    FoldedConv,
    FoldedGlow,
    FoldedNetwork,
    FoldedStep,
    ScaleMap,
    per_channel,
)
from glowserve_export.reference import Layers, in_bins, latents_by_level

# The log-scale of a logit.
_LOG_SCALES: dict[ScaleMap, Callable[[Tensor], Tensor]] = {
    "sigmoid": F.logsigmoid,
    "inverse_sigmoid": lambda logit: -F.logsigmoid(logit),
    "exp": lambda logit: logit,
}


class FoldedReference:
    """The reference of a model of a public implementation: its folded weights, with uniform dequantization.

    Args:
        glow: the folded flow.
        device: "cpu" or "cuda".

    Raises:
        ValueError: its dequantization is variational.
    """

    def __init__(self, glow: FoldedGlow, device: str = "cpu") -> None:
        if glow.dequantization is not None:
            raise ValueError("FoldedReference has no variational dequantization; use TorchReference")
        self._glow, self._device = glow, device
        self._squeeze = Squeeze()

    def log_likelihood(self, images: UInt8Array, noise: Float32Array) -> Float64Array:
        """See `Reference`."""
        total = torch.full(
            (len(images),), self._glow.log_det_constant, dtype=torch.float64, device=self._device
        )
        for _, _, nats in self._forward(images, noise):
            total += nats
        return total.numpy(force=True)

    def dequantized(self, images: UInt8Array, noise: Float32Array) -> Float64Array:
        """See `Reference`."""
        bins = to_bins(torch.from_numpy(images), self._glow.n_bits).numpy()
        return bins + noise.astype(np.float64)

    def pixels(self, latent: Float32Array) -> Float64Array:
        """See `Reference`."""
        *_, (_, pixels) = self.reverse_layers(latent)
        return pixels.numpy(force=True)

    def forward_layers(self, images: UInt8Array, noise: Float32Array) -> Layers:
        """See `Reference`."""
        for name, x, _ in self._forward(images, noise):
            yield name, x

    def reverse_layers(self, latent: Float32Array) -> Layers:
        """See `Reference`."""
        glow = self._glow
        latents = latents_by_level(torch.from_numpy(latent).double().to(self._device), glow.latent_shapes())
        x = torch.empty(0)
        for i, level in reversed(list(enumerate(glow.levels, 1))):
            if level.prior is None:
                z = latents[i - 1]
                x = z * _per_channel(glow.top_log_scale, z).exp() + _per_channel(glow.top_mean, z)
                yield "top.z", x
            else:
                mean, log_scale = _conv(x, level.prior).chunk(2, dim=1)
                x = torch.cat((x, latents[i - 1] * log_scale.exp() + mean), dim=1)
                yield f"level{i}.prior.joined", x
            for k, step in reversed(list(enumerate(level.steps, 1))):
                x = _inverse_step(x, step)
                yield step_name(i, k), x
            x, _ = self._squeeze.inverse(x)
        yield "pixels", in_bins(x, glow.n_bits)

    def _forward(self, images: UInt8Array, noise: Float32Array) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Each layer's name, its output, and its term of the log-likelihood, [N]."""
        glow = self._glow
        x = torch.from_numpy(self.dequantized(images, noise)).to(self._device) / 2**glow.n_bits - 0.5
        x = x.permute(0, 3, 1, 2)
        latents = []
        for i, level in enumerate(glow.levels, 1):
            x, _ = self._squeeze(x)
            for k, step in enumerate(level.steps, 1):
                x, log_det = _step(x, step)
                yield step_name(i, k), x, log_det
            if level.prior is None:
                latent = (x - _per_channel(glow.top_mean, x)) / _per_channel(glow.top_log_scale, x).exp()
                log_det = x.new_zeros(len(x))
            else:
                x, z = x.chunk(2, dim=1)
                mean, log_scale = _conv(x, level.prior).chunk(2, dim=1)
                latent, log_det = (z - mean) / log_scale.exp(), -log_scale.sum((1, 2, 3))
            latents.append(latent.flatten(1))
            log_prior = -0.5 * (latents[-1].square() + math.log(2 * math.pi)).sum(1)
            yield f"level{i}.latent", latents[-1], log_prior + log_det
        yield "latent", torch.cat(latents, dim=1), x.new_zeros(len(x))


def _step(x: Tensor, step: FoldedStep) -> tuple[Tensor, Tensor]:
    """The output and the log-determinant of the coupling, [N]."""
    passive, active = _halves(_linear(x, step.matrix, step.bias), step)
    shift, log_scale = _shift_and_log_scale(step, passive)
    return _joined(passive, (active + shift) * log_scale.exp(), step), log_scale.sum((1, 2, 3))


def _inverse_step(y: Tensor, step: FoldedStep) -> Tensor:
    passive, transformed = _halves(y, step)
    shift, log_scale = _shift_and_log_scale(step, passive)
    x = _joined(passive, transformed * (-log_scale).exp() - shift, step)
    return _linear(x, step.inverse_matrix, step.inverse_bias)


def _halves(x: Tensor, step: FoldedStep) -> tuple[Tensor, Tensor]:
    """The channels that condition the coupling, and those that it transforms."""
    first, second = x.chunk(2, dim=1)
    return (second, first) if step.transforms_first else (first, second)


def _joined(passive: Tensor, active: Tensor, step: FoldedStep) -> Tensor:
    """The inverse of `_halves`."""
    return torch.cat((active, passive) if step.transforms_first else (passive, active), dim=1)


def _shift_and_log_scale(step: FoldedStep, passive: Tensor) -> tuple[Tensor, Tensor]:
    output = _network(passive, step.network)
    if step.scale_map is None:
        return output, torch.zeros_like(output)
    shift, logit = output.chunk(2, dim=1)
    return shift, _LOG_SCALES[step.scale_map](logit)


def _network(x: Tensor, network: FoldedNetwork) -> Tensor:
    first, second, last = network
    return _conv(_conv(_conv(x, first).relu(), second).relu(), last)


def _linear(x: Tensor, matrix: Float64Array, bias: Float64Array) -> Tensor:
    return _conv(x, FoldedConv(matrix[:, :, None, None], bias))


def _conv(x: Tensor, conv: FoldedConv) -> Tensor:
    weight = torch.from_numpy(conv.weight).to(x.device)
    return conv2d(x, weight, padding=weight.shape[2] // 2) + _per_channel(conv.bias, x)


def _per_channel(values: Float64Array, like: Tensor) -> Tensor:
    """`per_channel` on the device of `like`."""
    return torch.from_numpy(per_channel(values)).to(like.device)
