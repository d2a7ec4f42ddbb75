"""An interpreter of FoldedGlow in NumPy and float64, written from protos/glowserve/v1/manifest.proto alone.

Tests compare the frontends and the graphs with it.

Shapes: N images, H W C of an image, D = H * W * C, L levels; [N, C, H, W] inside the flow.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from glowserve_export.folded import (
    FoldedConv,
    FoldedDequantization,
    FoldedGlow,
    FoldedNetwork,
    FoldedStep,
    per_channel,
)

Array = npt.NDArray[np.float64]

# Row and column of the four positions of a 2x2 block.
_BLOCK = ((0, 0), (0, 1), (1, 0), (1, 1))


@dataclass(frozen=True)
class Terms:
    """The outputs of the forward graph, as defined by the contract."""

    log_likelihood: Array
    """[N]."""

    latent: Array
    """[N, D]."""

    log_prior: Array
    """[N, L]."""

    log_det: Array
    """[N, L]."""


def forward(glow: FoldedGlow, images: npt.NDArray[np.uint8], noise: npt.NDArray[Any]) -> Terms:
    """Images and noise [N, H, W, C]."""
    bins = np.floor(images / 2.0 ** (8 - glow.n_bits))
    noise, noise_log_det = _dequantization_noise(glow, bins, noise)
    x = ((bins + noise) / 2.0**glow.n_bits - 0.5).transpose(0, 3, 1, 2)
    latents, log_prior, log_det = [], [], []
    for level in glow.levels:
        x, terms = _squeeze(x), np.zeros(len(x))
        for step in level.steps:
            x = np.einsum("oc,nchw->nohw", step.matrix, x) + step.bias[:, None, None]
            passive, active = np.split(x, 2, axis=1)[:: _order(step)]
            shift, log_scale = _shift_and_log_scale(step, passive)
            halves = (passive, (active + shift) * np.exp(log_scale))
            x = np.concatenate(halves[:: _order(step)], axis=1)
            terms = terms + _sum(log_scale)
        if level.prior is None:
            latent = (x - per_channel(glow.top_mean)) / np.exp(per_channel(glow.top_log_scale))
        else:
            x, z = np.split(x, 2, axis=1)
            mean, log_scale = np.split(convolve(x, level.prior), 2, axis=1)
            latent = (z - mean) / np.exp(log_scale)
            terms = terms - _sum(log_scale)
        latents.append(latent.reshape(len(latent), -1))
        log_prior.append((-0.5 * (latent**2 + math.log(2 * math.pi))).sum(axis=(1, 2, 3)))
        log_det.append(terms if log_det else terms + noise_log_det)
    total = sum(log_prior) + sum(log_det) + glow.log_det_constant
    return Terms(
        total, np.concatenate(latents, axis=1), np.stack(log_prior, axis=1), np.stack(log_det, axis=1)
    )


def reverse(glow: FoldedGlow, latent: npt.NDArray[Any]) -> Array:
    """Latents [N, D] to pixels in bins, [N, H, W, C]."""
    latent, shapes = latent.astype(np.float64), glow.latent_shapes()
    ends = np.cumsum([math.prod(shape) for shape in shapes])
    by_level = [
        part.reshape(-1, *shape)
        for part, shape in zip(np.split(latent, ends[:-1], axis=1), shapes, strict=True)
    ]
    x = np.empty(0)
    for level, own in zip(reversed(glow.levels), reversed(by_level), strict=True):
        if level.prior is None:
            x = own * np.exp(per_channel(glow.top_log_scale)) + per_channel(glow.top_mean)
        else:
            mean, log_scale = np.split(convolve(x, level.prior), 2, axis=1)
            x = np.concatenate((x, mean + own * np.exp(log_scale)), axis=1)
        for step in reversed(level.steps):
            passive, transformed = np.split(x, 2, axis=1)[:: _order(step)]
            shift, log_scale = _shift_and_log_scale(step, passive)
            halves = (passive, transformed / np.exp(log_scale) - shift)
            x = np.concatenate(halves[:: _order(step)], axis=1)
            x = np.einsum("oc,nchw->nohw", step.inverse_matrix, x) + step.inverse_bias[:, None, None]
        x = _unsqueeze(x)
    return (x.transpose(0, 2, 3, 1) + 0.5) * 2.0**glow.n_bits


def convolve(x: Array, conv: FoldedConv) -> Array:
    """[N, in, H, W] to [N, out, H, W]."""
    pad = conv.weight.shape[2] // 2
    padded = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, conv.weight.shape[2:], axis=(2, 3))
    y = np.tensordot(windows, conv.weight, axes=((1, 4, 5), (1, 2, 3)))
    return y.transpose(0, 3, 1, 2) + per_channel(conv.bias)


def run_network(x: Array, network: FoldedNetwork) -> tuple[Array, Array, Array]:
    """The activations of a coupling network after the first ReLU, after the second, and its output."""
    first, second, last = network
    hidden1 = np.maximum(convolve(x, first), 0)
    hidden2 = np.maximum(convolve(hidden1, second), 0)
    return hidden1, hidden2, convolve(hidden2, last)


def _dequantization_noise(glow: FoldedGlow, bins: Array, noise: npt.NDArray[Any]) -> tuple[Array, Array]:
    """The noise within the bins, [N, H, W, C], and the log-determinant of its map, [N]."""
    noise = noise.astype(np.float64)
    if glow.dequantization is None:
        return noise, np.zeros(len(noise))
    return _learned_noise(glow.dequantization, (bins + 0.5) / 2.0**glow.n_bits - 0.5, noise)


def _learned_noise(dequantization: FoldedDequantization, centers: Array, noise: Array) -> tuple[Array, Array]:
    margin = dequantization.margin
    u = margin + (1 - 2 * margin) * noise
    log_det = math.log(1 - 2 * margin) * noise[0].size - _sum(np.log(u)) - _sum(np.log(1 - u))
    z = _squeeze(np.log(u / (1 - u)).transpose(0, 3, 1, 2))
    context = _squeeze(centers.transpose(0, 3, 1, 2))
    for network in dequantization.networks:
        passive, active = np.split(z, 2, axis=1)
        conditions = np.concatenate((passive, context), axis=1)
        shift, logit = np.split(run_network(conditions, network)[2], 2, axis=1)
        scale = 2 / (1 + np.exp(-logit))
        log_det = log_det + _sum(np.log(scale))
        z = np.concatenate(((active + shift) * scale, passive), axis=1)
    v = _unsqueeze(1 / (1 + np.exp(-z))).transpose(0, 2, 3, 1)
    return v, log_det + _sum(np.log(v)) + _sum(np.log(1 - v))


def _squeeze(x: Array) -> Array:
    """The four positions of each 2x2 block, row by row, become four groups of channels."""
    return np.concatenate([x[:, :, row::2, column::2] for row, column in _BLOCK], axis=1)


def _unsqueeze(y: Array) -> Array:
    n, channels, height, width = y.shape
    x = np.empty((n, channels // 4, 2 * height, 2 * width))
    for (row, column), group in zip(_BLOCK, np.split(y, 4, axis=1), strict=True):
        x[:, :, row::2, column::2] = group
    return x


def _shift_and_log_scale(step: FoldedStep, passive: Array) -> tuple[Array, Array]:
    outputs = run_network(passive, step.network)[2]
    if not step.affine:
        return outputs, np.zeros_like(outputs)
    shift, logit = np.split(outputs, 2, axis=1)
    if step.scale_map == "exp":
        return shift, logit
    log_sigmoid = -np.logaddexp(0, -logit)
    return shift, log_sigmoid if step.scale_map == "sigmoid" else -log_sigmoid


def _order(step: FoldedStep) -> int:
    """The direction in which the halves are passive, active."""
    return -1 if step.transforms_first else 1


def _sum(x: Array) -> Array:
    return x.sum(axis=(1, 2, 3))
