"""The reference of folded weights in float64: of a model of a public implementation, which has no PyTorch model here.

Shapes: as in `glowserve_export.reference`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from glowserve_training.layers import Squeeze
from glowserve_training.layers.classes import Mixture
from glowserve_training.names import DEQUANTIZATION, pixel_coupling_name, step_name
from glowserve_training.quantization import to_bins
from torch import Tensor

from glowserve.images import UInt8Array
from glowserve.runtime.engine import Float32Array, Int64Array
from glowserve_export.convolution import Float64Array, per_channel
from glowserve_export.dequantization import LearnedNoise
from glowserve_export.folded import FoldedGlow, FoldedLevel
from glowserve_export.preprocessing import FLOW_INPUT
from glowserve_export.reference import Layers, latents_by_level


class FoldedReference:
    """The reference of a folded flow.

    Args:
        glow: the folded flow.
        device: "cpu" or "cuda".
    """

    def __init__(self, glow: FoldedGlow, device: str = "cpu") -> None:
        self._glow, self._device = glow, device
        self._squeeze = Squeeze()

    def log_likelihood(self, images: UInt8Array, noise: Float32Array) -> Float64Array:
        """See `Reference`."""
        total = torch.full(
            (len(images),), self._glow.log_det_constant, dtype=torch.float64, device=self._device
        )
        for name, x, nats in self._forward(images, noise):
            if nats is not None:
                total += nats.sum((1, 2, 3))
            if name == "latent" and self._glow.classes:
                total += self._mixture(x).log_ratio.sum(1)
        return total.numpy(force=True)

    def log_posterior(self, images: UInt8Array, noise: Float32Array) -> Float64Array:
        """See `Reference`."""
        *_, (_, latent, _) = self._forward(images, noise)
        return self._mixture(latent).log_posterior.numpy(force=True)

    def _mixture(self, latent: Tensor) -> Mixture:
        assert self._glow.classes is not None
        return self._glow.classes.mixture(latent.split(self._glow.classes.sizes, dim=1))

    def terms(self, images: UInt8Array, noise: Float32Array) -> Float64Array:
        """The log-likelihood by place, nats [N, H, W], of a model without classes; see `graphs.explain`."""
        size = self._glow.image_size
        total = torch.full(
            (len(images), size.height, size.width),
            self._glow.log_det_constant / size.pixels,
            dtype=torch.float64,
            device=self._device,
        )
        for _, _, nats in self._forward(images, noise):
            if nats is not None:
                block = size.height // nats.shape[2]
                places = nats.sum(1) / block**2
                total += places.repeat_interleave(block, 1).repeat_interleave(block, 2)
        return total.numpy(force=True)

    def dequantized(self, images: UInt8Array, noise: Float32Array) -> Float64Array:
        """See `Reference`."""
        bins, learned = self._bins_and_noise(images, noise)
        return (bins + learned.noise).permute(0, 2, 3, 1).numpy(force=True)

    def pixels(self, latent: Float32Array, classes: Int64Array | None = None) -> Float64Array:
        """See `Reference`."""
        latents = latent.astype(np.float64)
        if classes is not None:
            assert self._glow.classes is not None
            latents = self._glow.classes.place(latents, classes)
        *_, (_, pixels) = self._reverse(latents)
        return pixels.numpy(force=True)

    def forward_layers(self, images: UInt8Array, noise: Float32Array) -> Layers:
        """See `Reference`."""
        for name, x, _ in self._forward(images, noise):
            yield name, x

    def reverse_layers(self, latent: Float32Array) -> Layers:
        """See `Reference`."""
        return self._reverse(latent.astype(np.float64))

    def _reverse(self, latent: Float64Array) -> Layers:
        glow = self._glow
        latents = latents_by_level(torch.from_numpy(latent).to(self._device), glow.latent_shapes())
        x = torch.empty(0)
        for i, level in reversed(list(enumerate(glow.levels, 1))):
            if level.split is None:
                z = latents[i - 1]
                x = z * _per_channel(glow.top_log_scale, z).exp() + _per_channel(glow.top_mean, z)
                yield "top.z", x
            else:
                x = level.split.inverse(x, latents[i - 1])
                yield f"level{i}.prior.joined", x
            for k, step in reversed(list(enumerate(level.steps, 1))):
                x = step.inverse(x)
                yield step_name(i, k), x
            x, _ = self._squeeze.inverse(x)
        for k, coupling in reversed(list(enumerate(glow.pixel_couplings, 1))):
            x = coupling.inverse(x)
            yield pixel_coupling_name(k), x
        yield "pixels", glow.preprocessing.inverse(x, glow.n_bits).permute(0, 2, 3, 1)

    def _bins_and_noise(self, images: UInt8Array, noise: Float32Array) -> tuple[Tensor, LearnedNoise]:
        """Bins [N, C, H, W], and the noise within them."""
        glow = self._glow
        bins = to_bins(torch.from_numpy(images).to(self._device), glow.n_bits).double().permute(0, 3, 1, 2)
        uniform = torch.from_numpy(noise).to(self._device).double().permute(0, 3, 1, 2)
        if glow.dequantization is None:
            return bins, LearnedNoise(uniform, 1 - uniform, torch.zeros_like(uniform), [])
        return bins, glow.dequantization.forward(uniform, (bins + 0.5) / 2**glow.n_bits - 0.5)

    def _forward(
        self, images: UInt8Array, noise: Float32Array
    ) -> Iterator[tuple[str, Tensor, Tensor | None]]:
        """Each layer's name, its output, and its terms of the log-likelihood where they arise, [N, C, H, W]."""
        glow = self._glow
        bins, learned = self._bins_and_noise(images, noise)
        for name, z in learned.layers:
            yield name, z, None
        if glow.dequantization is not None:
            yield DEQUANTIZATION, learned.noise.permute(0, 2, 3, 1), learned.log_det
        x, log_det = glow.preprocessing.forward(bins, learned.noise, learned.complement, glow.n_bits)
        yield FLOW_INPUT, x, log_det
        for k, coupling in enumerate(glow.pixel_couplings, 1):
            x, log_det = coupling.forward(x)
            yield pixel_coupling_name(k), x, log_det
        latents = []
        for i, level in enumerate(glow.levels, 1):
            x, _ = self._squeeze(x)
            for k, step in enumerate(level.steps, 1):
                x, log_det = step.forward(x)
                yield step_name(i, k), x, log_det
            x, latent, log_det = self._latent(x, level)
            latents.append(latent.flatten(1))
            log_prior = -0.5 * (latent.square() + math.log(2 * math.pi))
            yield f"level{i}.latent", latents[-1], log_prior + log_det
        yield "latent", torch.cat(latents, dim=1), None

    def _latent(self, x: Tensor, level: FoldedLevel) -> tuple[Tensor, Tensor, Tensor]:
        """What continues to the next level, the latent of this one, and its log-determinant, value by value."""
        glow = self._glow
        if level.split is None:
            latent = (x - _per_channel(glow.top_mean, x)) / _per_channel(glow.top_log_scale, x).exp()
            return x, latent, torch.zeros_like(latent)
        return level.split.forward(x)


def _per_channel(values: Float64Array, like: Tensor) -> Tensor:
    """`per_channel` on the device of `like`."""
    return torch.from_numpy(per_channel(values)).to(like.device)
