"""The multi-scale model of the University of Amsterdam's tutorial on normalizing flows, with or without Glow's block.

Phillip Lippe, UvA Deep Learning tutorial 11 (https://uvadlc-notebooks.readthedocs.io): couplings with checkerboard and
channel masks (Dinh et al. 2017), gated convolutional networks and variational dequantization (Ho et al. 2019). Written
from the tutorial's description, as a baseline for likelihood.

The tutorial's images are grey. Of C channels, everything but the widths is C times as large.

Shapes: N images, C channels, H = W pixels a side, D = H * W * C. Images are uint8 [N, H, W, C]; inside the flow they
are [N, C, H, W].
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from glowserve_training import quantization
from glowserve_training.config import GlowConfig
from glowserve_training.evaluation import Float32Array, ImageTerms
from glowserve_training.layers import CONV1X1_CLASSES, ActNorm, Bijector
from torch import Tensor, nn

from glowserve.images import UInt8Array

# Values are kept this far, halved, away from 0 and 1, whose logits are infinite.
_ALPHA = 1e-5
# Hidden channels of the networks: of the dequantization, and before, between and after the two squeezes.
_WIDTHS = (16, 32, 48, 64)
_GATED_BLOCKS = 3


class ConcatELU(nn.Module):
    """ELU of x and of -x: twice the channels."""

    def forward(self, x: Tensor) -> Tensor:
        return F.elu(torch.cat((x, -x), dim=1))


class ChannelNorm(nn.LayerNorm):
    """Layer normalization over the channels of each position."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class GatedBlock(nn.Module):
    """x + value * sigmoid(gate), of which two convolutions compute value and gate."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.network = nn.Sequential(
            ConcatELU(),
            nn.Conv2d(2 * width, width, 3, padding=1),
            ConcatELU(),
            nn.Conv2d(2 * width, 2 * width, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.network(x).chunk(2, dim=1)
        return torch.addcmul(x, value, torch.sigmoid(gate))


class GatedNetwork(nn.Sequential):
    """The network of a coupling; its output is initialized to 0."""

    def __init__(self, in_channels: int, width: int, out_channels: int) -> None:
        blocks = [layer for _ in range(_GATED_BLOCKS) for layer in (GatedBlock(width), ChannelNorm(width))]
        last = nn.Conv2d(2 * width, out_channels, 3, padding=1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(cast("Tensor", last.bias))
        super().__init__(nn.Conv2d(in_channels, width, 3, padding=1), *blocks, ConcatELU(), last)


class MaskedCoupling(Bijector):
    """y = (x + shift) * exp(limit * tanh(raw / limit)) where the mask is 0; elsewhere y = x, which conditions it.

    Args:
        mask: of 0 and 1, [1, H, W] or [C, 1, 1].
        channels: C.
        width: hidden channels of the network.
        context: channels of a further input of the network.
    """

    mask: Tensor

    def __init__(self, mask: Tensor, channels: int, width: int, context: int = 0) -> None:
        super().__init__()
        self.register_buffer("mask", mask)
        self.network = GatedNetwork(channels + context, width, 2 * channels)
        self.log_limit = nn.Parameter(torch.zeros(channels, 1, 1))

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        shift, log_scale = self._shift_and_log_scale(x, context)
        return (x + shift) * log_scale.exp(), log_scale.sum((1, 2, 3))

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        shift, log_scale = self._shift_and_log_scale(y, context)
        return y * (-log_scale).exp() - shift, -log_scale.sum((1, 2, 3))

    def _shift_and_log_scale(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        visible = self.mask * x
        raw, shift = self.network(visible if context is None else torch.cat((visible, context), 1)).chunk(
            2, 1
        )
        limit, transformed = self.log_limit.exp(), 1 - self.mask
        return transformed * shift, transformed * limit * torch.tanh(raw / limit)


class BlockSqueeze(Bijector):
    """Turns each 2x2 block of positions into one position; a channel's four values become neighbouring channels."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return F.pixel_unshuffle(x, 2), x.new_zeros(len(x))

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        return F.pixel_shuffle(y, 2), y.new_zeros(len(y))


class Chain(Bijector):
    """Bijectors one after the other."""

    def __init__(self, bijectors: Iterable[Bijector]) -> None:
        super().__init__()
        self.bijectors = nn.ModuleList(bijectors)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        log_det = x.new_zeros(len(x))
        for bijector in self.bijectors:
            x, part = bijector(x)
            log_det = log_det + part
        return x, log_det

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        log_det = y.new_zeros(len(y))
        for bijector in reversed(self.bijectors):
            y, part = cast("Bijector", bijector).inverse(y)
            log_det = log_det + part
        return y, log_det


class TutorialFlow(Bijector):
    """From the logits of pixels, [N, C, H, W], to latents [N, D]: those that are split off, then the others.

    Args:
        image_size: H, a multiple of 4.
        channels: C.
        glow_block: whether an actnorm and an invertible 1x1 convolution precede each coupling of channel halves.
    """

    def __init__(self, image_size: int, channels: int, *, glow_block: bool) -> None:
        super().__init__()
        if image_size % 4:
            raise ValueError(
                f"image_size is {image_size}; two squeezes halve it, so it must be a multiple of 4"
            )
        half, quarter = image_size // 2, image_size // 4
        self._latent_shapes = ((-1, 2 * channels, half, half), (-1, 8 * channels, quarter, quarter))
        _, width, middle_width, top_width = _WIDTHS
        self.below = Chain(
            [
                *(MaskedCoupling(mask, channels, width) for mask in _checkerboards(image_size, 2)),
                BlockSqueeze(),
                *_channel_couplings(4 * channels, 2, middle_width, glow_block),
            ]
        )
        self.above = Chain([BlockSqueeze(), *_channel_couplings(8 * channels, 4, top_width, glow_block)])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x, log_det_below = self.below(x)
        x, split_off = x.chunk(2, dim=1)
        x, log_det_above = self.above(x)
        return torch.cat((split_off.flatten(1), x.flatten(1)), dim=1), log_det_below + log_det_above

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        parts = zip(y.chunk(2, dim=1), self._latent_shapes, strict=True)
        split_off, top = (part.reshape(shape) for part, shape in parts)
        x, log_det_above = self.above.inverse(top)
        x, log_det_below = self.below.inverse(torch.cat((x, split_off), dim=1))
        return x, log_det_above + log_det_below


class VariationalDequantization(nn.Module):
    """Uniform noise to noise that is conditional on the image: logit, couplings, sigmoid."""

    def __init__(self, image_size: int, channels: int) -> None:
        super().__init__()
        self.couplings = nn.ModuleList(
            MaskedCoupling(mask, channels, _WIDTHS[0], context=channels)
            for mask in _checkerboards(image_size, 4)
        )

    def forward(self, noise: Tensor, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The noise v, 1 - v, each [N, C, H, W], and log|det| [N].

        Args:
            noise: in [0, 1), [N, C, H, W].
            image: in -1 to 1, [N, C, H, W].
        """
        z, log_det = _logit(noise, 1 - noise)
        for coupling in self.couplings:
            z, part = coupling(z, image)
            log_det = log_det + part
        log_det = log_det + (F.logsigmoid(z) + F.logsigmoid(-z)).sum((1, 2, 3))
        return torch.sigmoid(z), torch.sigmoid(-z), log_det


class TutorialModel(nn.Module):
    """Dequantization, logit and flow, with a standard normal prior.

    Args:
        image_size: H, a multiple of 4.
        channels: C.
        n_bits: bits of each pixel value that the model sees.
        glow_block: see `TutorialFlow`.
    """

    def __init__(self, image_size: int, channels: int, n_bits: int = 8, *, glow_block: bool = False) -> None:
        super().__init__()
        self.n_bits = n_bits
        self.dequantization = VariationalDequantization(image_size, channels)
        self.flow = TutorialFlow(image_size, channels, glow_block=glow_block)

    def log_prob(self, images: Tensor, noise: Tensor) -> Tensor:
        """The log-likelihood of discrete images, in nats, [N]; arguments as in `encode`."""
        latent, log_det = self.encode(images, noise)
        return log_det - 0.5 * (latent.square() + math.log(2 * math.pi)).sum(1)

    def encode(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """The latents, [N, D], and the log-determinant of the map from noise to latents, [N].

        Args:
            images: uint8 [N, H, W, C].
            noise: in [0, 1), [N, H, W, C], in the parameters' dtype.
        """
        bins = quantization.to_bins(images, self.n_bits).permute(0, 3, 1, 2).to(noise.dtype)
        last = 2**self.n_bits - 1
        v, one_minus_v, log_det_noise = self.dequantization(noise.permute(0, 3, 1, 2), 2 * bins / last - 1)
        x, log_det_logit = _logit((bins + v) / (last + 1), (last - bins + one_minus_v) / (last + 1))
        latent, log_det_flow = self.flow(x)
        log_bin_volume = -noise[0].numel() * math.log(last + 1)
        return latent, log_det_noise + log_det_logit + log_det_flow + log_bin_volume

    @torch.no_grad()
    def terms(self, images: UInt8Array, noise: Float32Array) -> ImageTerms:
        """What `measure_likelihood` asks for; the log-likelihood is one term of one level."""
        log_prob = self.log_prob(torch.from_numpy(images), torch.from_numpy(noise)).double().numpy()[:, None]
        return ImageTerms(log_prob, np.zeros_like(log_prob), 0.0)


def _logit(s: Tensor, one_minus_s: Tensor) -> tuple[Tensor, Tensor]:
    """The logit of (1 - alpha) s + alpha / 2, and log|det| [N]. Both s and 1 - s are given, lest digits be lost."""
    log_s, log_one_minus_s = (((1 - _ALPHA) * part + _ALPHA / 2).log() for part in (s, one_minus_s))
    log_det = s[0].numel() * math.log1p(-_ALPHA) - (log_s + log_one_minus_s).sum((1, 2, 3))
    return log_s - log_one_minus_s, log_det


def _checkerboards(size: int, n: int) -> list[Tensor]:
    """n masks [1, H, W], each the opposite of the one before."""
    i = torch.arange(size)
    odd = (i[:, None] + i) % 2
    return [((odd + k) % 2).float()[None] for k in range(n)]


def _channel_couplings(channels: int, n: int, width: int, glow_block: bool) -> list[Bijector]:
    """n couplings of channel halves that take turns."""
    second_half = (torch.arange(channels) >= channels // 2).float()[:, None, None]
    bijectors: list[Bijector] = []
    for k in range(n):
        if glow_block:
            bijectors += [ActNorm(channels), CONV1X1_CLASSES[GlowConfig.parametrization](channels)]
        mask = second_half if k % 2 else 1 - second_half
        bijectors.append(MaskedCoupling(mask, channels, width))
    return bijectors
