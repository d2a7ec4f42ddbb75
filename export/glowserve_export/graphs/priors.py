"""Priors as nodes, in both directions; see `glowserve_training.layers.prior`.

Shapes: C H W of a level.
"""

from __future__ import annotations

import numpy as np

from glowserve_export.builder import GraphBuilder
from glowserve_export.convolution import FoldedConv, per_channel
from glowserve_export.folded import FoldedGlow


def standardized_split(
    g: GraphBuilder, continuing: str, z: str, prior: FoldedConv, size: int, name: str
) -> tuple[str, str]:
    """The latent (z - mean) / exp(log_scale), and its log-determinant [N, 1]: minus the sum of `size` log-scales."""
    mean, log_scale = _mean_and_log_scale(g, continuing, prior, name)
    centred = g.add("Sub", [z, mean], f"{name}.centred")
    scale = g.add("Exp", [log_scale], f"{name}.scale")
    latent = g.add("Div", [centred, scale], f"{name}.latent")
    return latent, g.minus_sum(log_scale, size, f"{name}.log_det")


def unstandardized_split(g: GraphBuilder, continuing: str, latent: str, prior: FoldedConv, name: str) -> str:
    """Z = mean + latent * exp(log_scale), concatenated to the half of the channels that it depends on."""
    mean, log_scale = _mean_and_log_scale(g, continuing, prior, name)
    scale = g.add("Exp", [log_scale], f"{name}.scale")
    scaled = g.add("Mul", [latent, scale], f"{name}.scaled")
    z = g.add("Add", [scaled, mean], f"{name}.z")
    return g.add("Concat", [continuing, z], f"{name}.joined", axis=1)


def standardized_top(g: GraphBuilder, x: str, glow: FoldedGlow) -> str:
    """The latent of the top level."""
    scale = np.exp(-glow.top_log_scale)
    x = g.add("Mul", [x, g.constant("top.scale", per_channel(scale))], "top.scaled")
    offset = g.constant("top.offset", per_channel(-glow.top_mean * scale))
    return g.add("Add", [x, offset], "top.latent")


def unstandardized_top(g: GraphBuilder, latent: str, glow: FoldedGlow) -> str:
    """The inverse of `standardized_top`."""
    scale = g.constant("top.scale", per_channel(np.exp(glow.top_log_scale)))
    x = g.add("Mul", [latent, scale], "top.scaled")
    return g.add("Add", [x, g.constant("top.mean", per_channel(glow.top_mean))], "top.z")


def _mean_and_log_scale(g: GraphBuilder, continuing: str, prior: FoldedConv, name: str) -> list[str]:
    half = prior.weight.shape[0] // 2
    x = g.conv(continuing, prior, f"{name}.conv")
    return g.split(x, [half, half], f"{name}.mean_log_scale")
