"""The prior of the top level as nodes, in both directions; see `glowserve_training.layers.TopPrior`."""

from __future__ import annotations

import numpy as np

from glowserve_export.builder import GraphBuilder
from glowserve_export.convolution import per_channel
from glowserve_export.folded import FoldedGlow


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
