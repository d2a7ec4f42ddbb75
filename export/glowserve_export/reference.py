"""The reference that graphs are measured against: the same flow in float64, layer by layer.

Shapes: N images, H W C of an image, D = H * W * C; [N, C, H, W] inside the flow.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import torch
from glowserve_training.dequantization import Dequantized
from glowserve_training.layers import Coupling
from glowserve_training.model import Glow
from glowserve_training.names import (
    DEQUANTIZATION,
    dequantization_coupling_name,
    pixel_coupling_name,
    step_name,
)
from torch import Tensor

from glowserve.images import UInt8Array
from glowserve.runtime.engine import Float32Array, Int64Array
from glowserve_export.convolution import Float64Array
from glowserve_export.float64 import Float64Convolutions
from glowserve_export.preprocessing import FLOW_INPUT

Layers = Iterator[tuple[str, Tensor]]
"""The output of each layer with its tensor name in the graph, in the order of the graph."""


class Reference(Protocol):
    """A flow in float64. Noise is [N, H, W, C] in [0, 1); pixels are in bins."""

    def log_likelihood(self, images: UInt8Array, noise: Float32Array) -> Float64Array:
        """Nats of discrete images, [N]."""

    def dequantized(self, images: UInt8Array, noise: Float32Array) -> Float64Array:
        """Bins with noise, [N, H, W, C]."""

    def log_posterior(self, images: UInt8Array, noise: Float32Array) -> Float64Array:
        """Log p(c | x) of a model with K classes, [N, K]."""

    def pixels(self, latent: Float32Array, classes: Int64Array | None = None) -> Float64Array:
        """Decodes latents [N, D], with classes [N] those of their classes, to pixels [N, H, W, C]."""

    def forward_layers(self, images: UInt8Array, noise: Float32Array) -> Layers:
        """The outputs of every layer; last, the latent.

        In order: the couplings of variational dequantization and its noise; the flow's input; the couplings of pixels;
        level by level, the steps of flow and the latent.
        """

    def reverse_layers(self, latent: Float32Array) -> Layers:
        """The outputs of the inverse of every prior, step of flow and coupling of pixels; last, the pixels."""


class TorchReference:
    """The reference of a model that was trained here: PyTorch's own computation, so that folding is measured too.

    Args:
        model: in any precision; a float64 model is used as it is, and not copied.
        device: "cpu" or "cuda".
    """

    def __init__(self, model: Glow, device: str = "cpu") -> None:
        self._model, self._device = as_float64(model).to(device).eval(), device

    @torch.no_grad()
    def log_likelihood(self, images: UInt8Array, noise: Float32Array) -> Float64Array:
        """See `Reference`."""
        with Float64Convolutions():
            nats: Tensor = self._model.log_prob(self._bytes(images), self._doubles(noise))
        return nats.numpy(force=True)

    @torch.no_grad()
    def dequantized(self, images: UInt8Array, noise: Float32Array) -> Float64Array:
        """See `Reference`."""
        with Float64Convolutions():
            return self._dequantized(images, noise).pixels().numpy(force=True)

    @torch.no_grad()
    def log_posterior(self, images: UInt8Array, noise: Float32Array) -> Float64Array:
        """See `Reference`."""
        with Float64Convolutions():
            return self._model.log_posterior(self._bytes(images), self._doubles(noise)).numpy(force=True)

    @torch.no_grad()
    def pixels(self, latent: Float32Array, classes: Int64Array | None = None) -> Float64Array:
        """See `Reference`."""
        latents = self._doubles(latent)
        if classes is not None:
            assert self._model.class_priors is not None
            latents = self._model.class_priors.place(latents, torch.from_numpy(classes).to(self._device))
        with Float64Convolutions():
            return self._model.pixels(latents).numpy(force=True)

    @torch.no_grad()
    def forward_layers(self, images: UInt8Array, noise: Float32Array) -> Layers:
        """See `Reference`."""
        model = self._model
        couplings = model.dequantization.flow_couplings() if model.dequantization else []
        with _recorded(couplings) as outputs:
            dequantized = self._dequantized(images, noise)
        if model.dequantization is not None:
            for k, z in enumerate(outputs, 1):
                yield dequantization_coupling_name(k), z
            yield DEQUANTIZATION, dequantized.noise.permute(0, 2, 3, 1)
        x, _ = model.preprocess(dequantized)
        yield FLOW_INPUT, x
        for k, coupling in enumerate(model.couplings_of_pixels(), 1):
            x, _ = coupling(x)
            yield pixel_coupling_name(k), x
        latents = []
        for i, level in enumerate(model.flow_levels(), 1):
            x, _ = level.squeeze(x)
            for k, step in enumerate(level.flow_steps(), 1):
                x, _ = step(x)
                yield step_name(i, k), x
            x, _ = level.prior(x)
            x, latent = x.chunk(2, dim=1) if i < model.config.levels else (x, x)
            latents.append(latent.flatten(1))
            yield f"level{i}.latent", latents[-1]
        yield "latent", torch.cat(latents, dim=1)

    @torch.no_grad()
    def reverse_layers(self, latent: Float32Array) -> Layers:
        """See `Reference`."""
        model = self._model
        latents = latents_by_level(self._doubles(latent), model.latent_shapes())
        x = torch.empty(0)
        for i, level in reversed(list(enumerate(model.flow_levels(), 1))):
            top = i == model.config.levels
            x, _ = level.prior.inverse(latents[i - 1] if top else torch.cat((x, latents[i - 1]), dim=1))
            yield "top.z" if top else f"level{i}.prior.joined", x
            for k, step in reversed(list(enumerate(level.flow_steps(), 1))):
                x, _ = step.inverse(x)
                yield step_name(i, k), x
            x, _ = level.squeeze.inverse(x)
        for k, coupling in reversed(list(enumerate(model.couplings_of_pixels(), 1))):
            x, _ = coupling.inverse(x)
            yield pixel_coupling_name(k), x
        yield "pixels", model.preprocessing.inverse(x).permute(0, 2, 3, 1)

    def _dequantized(self, images: UInt8Array, noise: Float32Array) -> Dequantized:
        return self._model.dequantize(self._bytes(images), self._doubles(noise))

    def _bytes(self, images: UInt8Array) -> Tensor:
        return torch.from_numpy(images).to(self._device)

    def _doubles(self, values: Float32Array) -> Tensor:
        return torch.from_numpy(values).double().to(self._device)


def as_float64(model: Glow) -> Glow:
    """The model in float64: itself if it is, else a copy."""
    if next(model.parameters()).dtype == torch.float64:
        return model
    return copy.deepcopy(model).double()


@contextmanager
def _recorded(couplings: Sequence[Coupling]) -> Iterator[list[Tensor]]:
    """The outputs of couplings that run meanwhile, in the order in which they run."""
    outputs: list[Tensor] = []
    hooks = [
        coupling.register_forward_hook(lambda _module, _inputs, output: outputs.append(output[0]))
        for coupling in couplings
    ]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()


def latents_by_level(latent: Tensor, shapes: list[tuple[int, int, int]]) -> list[Tensor]:
    """Latents [N, D] by level, each [N, C, H, W] of its level; level 1 first."""
    parts = latent.split([math.prod(shape) for shape in shapes], dim=1)
    return [part.reshape(-1, *shape) for part, shape in zip(parts, shapes, strict=True)]
