"""What a graph is measured by: the same flow, layer by layer, in float64.

Shapes: N images, H W C, D = H * W * C; inside the flow [N, c, h, w].
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Protocol, cast

import numpy as np
import torch
import torch.nn.functional as F
from glowserve_training.layers import Squeeze
from glowserve_training.model import FlowStep, Glow, Level
from glowserve_training.names import step_name
from glowserve_training.quantization import to_bins
from torch import Tensor

from glowserve.images import UInt8Array
from glowserve.runtime.engine import Float32Array
from glowserve_export.baked import (
    DEQUANTIZATION,
    BakedConv,
    BakedGlow,
    BakedNetwork,
    BakedStep,
    Float64Array,
)

Layers = Iterator[tuple[str, Tensor]]
"""What each layer yields, under the name that it has in the graph, in order."""


class Exact(Protocol):
    """A flow in float64. Noise is [N, H, W, C] in [0, 1); pixels are on the scale of bins."""

    def log_likelihood(self, images: UInt8Array, noise: Float32Array) -> Float64Array:
        """Nats of discrete images, [N]."""

    def dequantized(self, images: UInt8Array, noise: Float32Array) -> Float64Array:
        """What the flow sees of images, in bins, [N, H, W, C]."""

    def pixels(self, latent: Float32Array) -> Float64Array:
        """Latents [N, D] to pixels, [N, H, W, C]."""

    def forward_layers(self, images: UInt8Array, noise: Float32Array) -> Layers:
        """What dequantization, every step of flow and every prior yield; at last the whole latent."""

    def reverse_layers(self, latent: Float32Array) -> Layers:
        """What undoing every prior and every step of flow yields; at last the pixels."""


class ExactModel:
    """The model that was trained here, as PyTorch computes it: it measures the folding, too.

    Args:
        model: in any precision.
    """

    def __init__(self, model: Glow) -> None:
        self._model = Glow(model.config).double().eval()
        self._model.load_state_dict(model.state_dict())

    @torch.no_grad()
    def log_likelihood(self, images: UInt8Array, noise: Float32Array) -> Float64Array:
        """See `Exact`."""
        nats: Float64Array = self._model.log_prob(
            torch.from_numpy(images), torch.from_numpy(noise).double()
        ).numpy()
        return nats

    @torch.no_grad()
    def dequantized(self, images: UInt8Array, noise: Float32Array) -> Float64Array:
        """See `Exact`."""
        y, _ = self._model.dequantize(torch.from_numpy(images), torch.from_numpy(noise).double())
        return _pixels(y, self._model.config.n_bits).numpy()

    @torch.no_grad()
    def pixels(self, latent: Float32Array) -> Float64Array:
        """See `Exact`."""
        y, _ = self._model.inverse(torch.from_numpy(latent).double())
        return _pixels(y, self._model.config.n_bits).numpy()

    @torch.no_grad()
    def forward_layers(self, images: UInt8Array, noise: Float32Array) -> Layers:
        """See `Exact`."""
        model, given = self._model, torch.from_numpy(images)
        x, _ = model.dequantize(given, torch.from_numpy(noise).double())
        if model.dequantization is not None:
            yield DEQUANTIZATION, _pixels(x, model.config.n_bits) - to_bins(given, model.config.n_bits)
        latents = []
        for i, level in self._levels():
            x, _ = level.squeeze(x)
            for k, step in self._steps(level):
                x, _ = step(x)
                yield step_name(i, k), x
            x, _ = level.prior(x)
            x, latent = x.chunk(2, dim=1) if i < model.config.levels else (x, x)
            latents.append(latent.flatten(1))
            yield f"level{i}.latent", latents[-1]
        yield "latent", torch.cat(latents, dim=1)

    @torch.no_grad()
    def reverse_layers(self, latent: Float32Array) -> Layers:
        """See `Exact`."""
        parts = _by_level(torch.from_numpy(latent).double(), self._model.latent_shapes())
        x = torch.empty(0)
        for i, level in reversed(list(self._levels())):
            top = i == self._model.config.levels
            own = parts[i - 1]
            x, _ = level.prior.inverse(own if top else torch.cat((x, own), dim=1))
            yield "top.z" if top else f"level{i}.prior.joined", x
            for k, step in reversed(list(self._steps(level))):
                x, _ = step.inverse(x)
                yield step_name(i, k), x
            x, _ = level.squeeze.inverse(x)
        yield "pixels", _pixels(x, self._model.config.n_bits)

    def _levels(self) -> Iterator[tuple[int, Level]]:
        return enumerate(cast("list[Level]", list(self._model.levels)), 1)

    @staticmethod
    def _steps(level: Level) -> Iterator[tuple[int, FlowStep]]:
        return enumerate(level.flow_steps(), 1)


class ExactBaked:
    """A flow that was trained elsewhere, from its constants, with uniform dequantization.

    Args:
        glow: the constants.
    """

    def __init__(self, glow: BakedGlow) -> None:
        if glow.dequantization is not None:
            raise ValueError("a learned dequantization is measured against its own model")
        self._glow = glow
        self._squeeze = Squeeze()

    def log_likelihood(self, images: UInt8Array, noise: Float32Array) -> Float64Array:
        """See `Exact`."""
        total = torch.full((len(images),), self._glow.log_det_constant, dtype=torch.float64)
        for _, _, nats in self._forward(images, noise):
            total += nats
        return total.numpy()

    def dequantized(self, images: UInt8Array, noise: Float32Array) -> Float64Array:
        """See `Exact`."""
        bins: Float64Array = np.floor(images / 2.0 ** (8 - self._glow.n_bits)) + noise.astype(np.float64)
        return bins

    def pixels(self, latent: Float32Array) -> Float64Array:
        """See `Exact`."""
        *_, (_, pixels) = self.reverse_layers(latent)
        return pixels.numpy()

    def forward_layers(self, images: UInt8Array, noise: Float32Array) -> Layers:
        """See `Exact`."""
        for name, x, _ in self._forward(images, noise):
            yield name, x

    def reverse_layers(self, latent: Float32Array) -> Layers:
        """See `Exact`."""
        glow = self._glow
        parts = _by_level(torch.from_numpy(latent).double(), glow.latent_shapes())
        x = torch.empty(0)
        for i, level in reversed(list(enumerate(glow.levels, 1))):
            own = parts[i - 1]
            if level.prior is None:
                x = own * _at_places(glow.top_log_scale).exp() + _at_places(glow.top_mean)
                yield "top.z", x
            else:
                mean, log_scale = _conv(x, level.prior).chunk(2, dim=1)
                x = torch.cat((x, own * log_scale.exp() + mean), dim=1)
                yield f"level{i}.prior.joined", x
            for k, step in reversed(list(enumerate(level.steps, 1))):
                passive, changed = _halves(x, step)
                shift, log_scale = _shift_and_log_scale(step, passive)
                x = torch.cat((passive, changed * (-log_scale).exp() - shift), dim=1)
                x = _mix(x, step.inverse_matrix, step.inverse_bias)
                yield step_name(i, k), x
            x, _ = self._squeeze.inverse(x)
        yield "pixels", _pixels(x, glow.n_bits)

    def _forward(self, images: UInt8Array, noise: Float32Array) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Each layer's name, what it yields, and its part of the log-likelihood, [N]."""
        glow = self._glow
        x = torch.from_numpy(self.dequantized(images, noise)) / 2**glow.n_bits - 0.5
        x = x.permute(0, 3, 1, 2)
        latents = []
        for i, level in enumerate(glow.levels, 1):
            x, _ = self._squeeze(x)
            for k, step in enumerate(level.steps, 1):
                passive, active = _halves(_mix(x, step.matrix, step.bias), step)
                shift, log_scale = _shift_and_log_scale(step, passive)
                x = torch.cat((passive, (active + shift) * log_scale.exp()), dim=1)
                yield step_name(i, k), x, log_scale.sum((1, 2, 3))
            if level.prior is None:
                latent = (x - _at_places(glow.top_mean)) / _at_places(glow.top_log_scale).exp()
                log_det = x.new_zeros(len(x))
            else:
                x, z = x.chunk(2, dim=1)
                mean, log_scale = _conv(x, level.prior).chunk(2, dim=1)
                latent, log_det = (z - mean) / log_scale.exp(), -log_scale.sum((1, 2, 3))
            latents.append(latent.flatten(1))
            log_prior = -0.5 * (latents[-1].square() + math.log(2 * math.pi)).sum(1)
            yield f"level{i}.latent", latents[-1], log_prior + log_det
        yield "latent", torch.cat(latents, dim=1), x.new_zeros(len(x))


def _pixels(y: Tensor, n_bits: int) -> Tensor:
    """Dequantized images [N, C, H, W] on the scale of bins, [N, H, W, C]."""
    pixels: Tensor = (y.permute(0, 2, 3, 1) + 0.5) * 2**n_bits
    return pixels


def _by_level(latent: Tensor, shapes: list[tuple[int, int, int]]) -> list[Tensor]:
    parts = latent.split([math.prod(shape) for shape in shapes], dim=1)
    return [part.reshape(-1, *shape) for part, shape in zip(parts, shapes, strict=True)]


def _conv(x: Tensor, conv: BakedConv) -> Tensor:
    weight = torch.from_numpy(conv.weight)
    return F.conv2d(x, weight, padding=weight.shape[2] // 2) + _at_places(conv.bias)


def _mix(x: Tensor, matrix: Float64Array, bias: Float64Array) -> Tensor:
    return _conv(x, BakedConv(matrix[:, :, None, None], bias))


def _halves(x: Tensor, step: BakedStep) -> tuple[Tensor, Tensor]:
    half = step.channels // 2
    return x[:, :half], x[:, half:]


def _shift_and_log_scale(step: BakedStep, passive: Tensor) -> tuple[Tensor, Tensor]:
    outputs = _outputs(passive, step.network)
    if not step.affine:
        return outputs, torch.zeros_like(outputs)
    shift, logit = outputs.chunk(2, dim=1)
    return shift, F.logsigmoid(logit)


def _outputs(x: Tensor, network: BakedNetwork) -> Tensor:
    first, second, last = network
    return _conv(_conv(_conv(x, first).relu(), second).relu(), last)


def _at_places(values: Float64Array) -> Tensor:
    """Values of channels, [c] or [c, h, w], as [c, 1, 1] or as they are."""
    return torch.from_numpy(values if values.ndim == 3 else values[:, None, None])
