"""Variational dequantization as nodes of forward.onnx; see `FoldedDequantization`: 13 nodes a coupling and 30 others.

Shapes: N images, H W C of an image; [N, 4C, H/2, W/2] squeezed.
"""

from __future__ import annotations

import math

from glowserve_export.folded import (
    DEQUANTIZATION,
    FoldedDequantization,
    FoldedGlow,
    FoldedNetwork,
)
from glowserve_export.graphs.builder import GraphBuilder
from glowserve_export.graphs.networks import coupling_network


def learned_noise(
    g: GraphBuilder, bins: str, dequantization: FoldedDequantization, glow: FoldedGlow
) -> tuple[str, str]:
    """Noise from uniform noise, [N, H, W, C], and the log-determinant of that map, [N, 1]."""
    name = DEQUANTIZATION
    z, log_uniforms = _logit(g, dequantization.margin, name)
    context = _squeezed_centers(g, bins, glow.n_bits, f"{name}.context")
    logits = []
    for k, network in enumerate(dequantization.networks, 1):
        z, logit = _coupling(g, z, context, network, f"{name}.coupling{k}")
        logits.append(logit)
    noise = g.add("Sigmoid", [z], f"{name}.noise")
    noise = g.add("DepthToSpace", [noise], f"{name}.unsqueeze", blocksize=2, mode="DCR")
    noise = g.add("Transpose", [noise], name, perm=[0, 2, 3, 1])
    return noise, _log_det(g, z, log_uniforms, logits, dequantization.margin, glow)


def _logit(g: GraphBuilder, margin: float, name: str) -> tuple[str, list[str]]:
    """logit(u), and log u and log(1 - u), all squeezed, of u = margin + (1 - 2 margin) noise.

    1 - u is computed from 1 - noise: that difference is exact in float32, and 1 - u near u = 1 is not.
    """
    x = g.add("Transpose", ["noise"], f"{name}.planes", perm=[0, 3, 1, 2])
    x = g.add("SpaceToDepth", [x], f"{name}.squeeze", blocksize=2)
    complement = g.add("Sub", [g.constant("one", 1.0), x], f"{name}.rest")
    factor, offset = g.constant(f"{name}.factor", 1 - 2 * margin), g.constant(f"{name}.margin", margin)
    logs = []
    for uniform, suffix in ((x, "u"), (complement, "1-u")):
        u = g.add("Mul", [uniform, factor], f"{name}.{suffix}.scaled")
        u = g.add("Add", [u, offset], f"{name}.{suffix}")
        logs.append(g.add("Log", [u], f"{name}.{suffix}.log"))
    return g.add("Sub", logs, f"{name}.logit"), logs


def _squeezed_centers(g: GraphBuilder, bins: str, n_bits: int, name: str) -> str:
    """The centers of bins [N, H, W, C] on the flow's scale, squeezed."""
    x = g.add("Mul", [bins, g.constant("bin.width", 2.0**-n_bits)], f"{name}.unit")
    x = g.add("Add", [x, g.constant("bin.first_middle", 2.0 ** -(n_bits + 1) - 0.5)], f"{name}.centred")
    x = g.add("Transpose", [x], f"{name}.planes", perm=[0, 3, 1, 2])
    return g.add("SpaceToDepth", [x], f"{name}.squeeze", blocksize=2)


def _coupling(g: GraphBuilder, z: str, context: str, network: FoldedNetwork, name: str) -> tuple[str, str]:
    """The coupling's output with its halves swapped, and the logit of its scale."""
    half = network[2].bias.size // 2
    passive, active = g.split(z, [half, half], f"{name}.halves")
    conditions = g.add("Concat", [passive, context], f"{name}.conditions", axis=1)
    shift, logit = coupling_network(g, conditions, network, half, name, affine=True)
    transformed = g.add("Add", [active, shift], f"{name}.shifted")
    scale = g.add("Sigmoid", [logit], f"{name}.half_scale")
    scale = g.add("Mul", [scale, g.constant("two", 2.0)], f"{name}.scale")
    transformed = g.add("Mul", [transformed, scale], f"{name}.scaled")
    return g.add("Concat", [transformed, passive], name, axis=1), logit


def _log_det(
    g: GraphBuilder, z: str, log_uniforms: list[str], logits: list[str], margin: float, glow: FoldedGlow
) -> str:
    """The log-determinant of logit, couplings and sigmoid, [N, 1].

    Its terms nearly cancel, and are therefore added value by value before they are summed: log u + log(1 - u) of the
    logit, softplus(z) + softplus(-z) of the sigmoid, softplus(-logit) - ln 2 of each coupling.
    """
    name = DEQUANTIZATION
    softplus = g.add("Softplus", [z], f"{name}.softplus")
    minus_z = g.add("Neg", [z], f"{name}.minus_z")
    softplus_minus = g.add("Softplus", [minus_z], f"{name}.softplus_minus")
    ends = g.add("Sum", [*log_uniforms, softplus, softplus_minus], f"{name}.minus_log_ends")
    x = g.add("Concat", logits, f"{name}.logits", axis=1)
    x = g.add("Neg", [x], f"{name}.minus_logits")
    x = g.add("Softplus", [x], f"{name}.minus_log_sigmoid")
    x = g.add("Sub", [x, g.constant(f"{name}.ln2", math.log(2))], f"{name}.minus_log_scale")
    x = g.add("Concat", [ends, x], f"{name}.minus_log_dets", axis=1)
    size = (4 + 2 * len(logits)) * glow.channels * (glow.image_size // 2) ** 2
    x = g.minus_sum(x, size, f"{name}.varying")
    of_margin = g.constant(f"{name}.constant", glow.dimensions * math.log1p(-2 * margin))
    return g.add("Add", [x, of_margin], f"{name}.log_det")
