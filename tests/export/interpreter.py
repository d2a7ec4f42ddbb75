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
from glowserve_export.convolution import FoldedConv, per_channel
from glowserve_export.couplings import (
    AffineSpline,
    Checkerboard,
    DoubleSigmoidScale,
    ExpScale,
    FoldedCoupling,
    FoldedNetwork,
    Halves,
    InverseSigmoidScale,
    Shift,
    SigmoidScale,
    TanhScale,
    Transform,
)
from glowserve_export.dequantization import FoldedDequantization
from glowserve_export.folded import FoldedGlow
from glowserve_export.preprocessing import Logit
from glowserve_export.split import FoldedSplit

from tests.export import splines

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
    noise, input_log_det = _dequantization_noise(glow, bins, noise)
    x, terms = _preprocessed(glow, (bins + noise) / 2.0**glow.n_bits)
    x, input_log_det = x.transpose(0, 3, 1, 2), input_log_det + terms
    for coupling in glow.pixel_couplings:
        x, terms = couple(coupling, x)
        input_log_det = input_log_det + terms
    latents, log_prior, log_det = [], [], []
    for level in glow.levels:
        x, terms = _squeeze(x), np.zeros(len(x))
        for step in level.steps:
            x = np.einsum("oc,nchw->nohw", step.matrix, x) + step.bias[:, None, None]
            x, log_det_step = couple(step.coupling, x)
            terms = terms + log_det_step
        if level.split is None:
            latent = (x - per_channel(glow.top_mean)) / np.exp(per_channel(glow.top_log_scale))
        else:
            x, z = np.split(x, 2, axis=1)
            mean, log_scale = _mean_and_log_scale(level.split, x)
            latent = (z - mean) / np.exp(log_scale)
            terms = terms - _sum(log_scale)
        latents.append(latent.reshape(len(latent), -1))
        log_prior.append((-0.5 * (latent**2 + math.log(2 * math.pi))).sum(axis=(1, 2, 3)))
        log_det.append(terms if log_det else terms + input_log_det)
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
        if level.split is None:
            x = own * np.exp(per_channel(glow.top_log_scale)) + per_channel(glow.top_mean)
        else:
            mean, log_scale = _mean_and_log_scale(level.split, x)
            x = np.concatenate((x, mean + own * np.exp(log_scale)), axis=1)
        for step in reversed(level.steps):
            x = _uncouple(step.coupling, x)
            x = np.einsum("oc,nchw->nohw", step.inverse_matrix, x) + step.inverse_bias[:, None, None]
        x = _unsqueeze(x)
    for coupling in reversed(glow.pixel_couplings):
        x = _uncouple(coupling, x)
    y = x.transpose(0, 2, 3, 1)
    if not isinstance(glow.preprocessing, Logit):
        return (y + 0.5) * 2.0**glow.n_bits
    alpha = glow.preprocessing.alpha
    pixels: Array = (1 / (1 + np.exp(-y)) - alpha) / (1 - 2 * alpha) * 2.0**glow.n_bits
    return pixels


def _mean_and_log_scale(split: FoldedSplit, x: Array) -> tuple[Array, Array]:
    mean, raw = np.split(convolve(x, split.network), 2, axis=1)
    return mean, raw if split.bound is None else split.bound * np.tanh(raw)


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


def _preprocessed(glow: FoldedGlow, s: Array) -> tuple[Array, Array]:
    """The flow's input, and the log-determinant, [N]."""
    if not isinstance(glow.preprocessing, Logit):
        return s - 0.5, np.zeros(len(s))
    alpha = glow.preprocessing.alpha
    t = alpha + (1 - 2 * alpha) * s
    log_det = s[0].size * math.log(1 - 2 * alpha) - _sum(np.log(t)) - _sum(np.log(1 - t))
    return np.log(t / (1 - t)), log_det


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
    for coupling in dequantization.couplings:
        z, log_det_coupling = couple(coupling, z, context)
        log_det = log_det + log_det_coupling
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


def couple(coupling: FoldedCoupling, x: Array, context: Array | None = None) -> tuple[Array, Array]:
    """The output and the log-determinant, [N]."""
    active, (shift, log_scale, knots) = _active(coupling, x), _parameters(coupling, x, context)
    y = (x + shift) * np.exp(log_scale)
    if isinstance(coupling.transform, AffineSpline):
        y, log_slope = splines.bend(y, knots, coupling.transform)
        log_scale = log_scale + log_slope
    return np.where(active, y, x), _sum(np.where(active, log_scale, 0))


def _uncouple(coupling: FoldedCoupling, y: Array) -> Array:
    active, (shift, log_scale, knots) = _active(coupling, y), _parameters(coupling, y, None)
    x = splines.unbend(y, knots, coupling.transform) if isinstance(coupling.transform, AffineSpline) else y
    return np.asarray(np.where(active, x / np.exp(log_scale) - shift, y))


def _active(coupling: FoldedCoupling, x: Array) -> npt.NDArray[np.bool_]:
    """Which values the coupling transforms, [C, H, W]."""
    channel, row, column = np.indices(x.shape[1:])
    if isinstance(coupling.mask, Checkerboard):
        return np.asarray((row + column) % 2 != coupling.mask.parity)
    assert isinstance(coupling.mask, Halves)
    return np.asarray((channel < len(channel) // 2) == coupling.mask.transforms_first)


def _parameters(coupling: FoldedCoupling, x: Array, context: Array | None) -> tuple[Array, Array, Array]:
    """The shift and the log-scale of every value, [N, C, H, W], and what a spline has, [N, C, outputs, H, W].

    Those of values that are not transformed mean nothing.
    """
    active, transform = _active(coupling, x), coupling.transform
    halves = isinstance(coupling.mask, Halves)
    inputs = x[:, ~active[:, 0, 0]] if halves else np.where(active, 0, x)
    if context is not None:
        inputs = np.concatenate((inputs, context), axis=1)
    outputs = run_network(inputs, coupling.network)[2]
    channels = coupling.active_channels
    shift, raw, rest = np.split(outputs, [channels, 2 * channels], axis=1)
    log_scale = np.zeros_like(shift) if isinstance(transform, Shift) else _log_scale(transform, raw)
    knots = rest.reshape(len(x), channels, -1, *x.shape[2:])
    if not halves:
        return shift, log_scale, knots
    whole = [np.zeros((len(x), x.shape[1], *part.shape[2:])) for part in (shift, log_scale, knots)]
    for values, part in zip(whole, (shift, log_scale, knots), strict=True):
        values[:, active[:, 0, 0]] = part
    return whole[0], whole[1], whole[2]


def _log_scale(transform: Transform, raw: Array) -> Array:
    log_sigmoid: Array = -np.logaddexp(0, -raw)
    match transform:
        case ExpScale():
            return raw
        case SigmoidScale():
            return log_sigmoid
        case InverseSigmoidScale():
            return -log_sigmoid
        case DoubleSigmoidScale():
            return log_sigmoid + math.log(2)
        case TanhScale(bound=bound):
            return np.asarray(-per_channel(bound) * np.tanh(raw))
        case AffineSpline(affine=affine):
            return _log_scale(affine, raw)
    raise AssertionError(transform)


def _sum(x: Array) -> Array:
    return x.sum(axis=(1, 2, 3))
