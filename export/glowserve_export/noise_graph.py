"""The nodes of variational dequantization, at the head of forward.onnx; see `glowserve_training.dequantization`.

Shapes: N images, H W C of the image; squeezed [N, 4C, H/2, W/2].
"""

from __future__ import annotations

import math

from glowserve_export.baked import (
    DEQUANTIZATION,
    BakedDequantization,
    BakedGlow,
    BakedNetwork,
)
from glowserve_export.onnx_graph import Graph, coupling_network, minus_sum


def learned_noise(
    g: Graph, bins: str, dequantization: BakedDequantization, glow: BakedGlow
) -> tuple[str, str]:
    """The noise that uniform noise becomes, [N, H, W, C], and the log-determinant, [N, 1]."""
    name, channels = DEQUANTIZATION, glow.channels
    z, log_noise = _logit(g, dequantization.margin, name)
    context = _squeezed_middles(g, bins, glow.n_bits, f"{name}.context")
    logits = []
    for k, network in enumerate(dequantization.networks, 1):
        z, logit = _noise_coupling(g, z, context, network, f"{name}.coupling{k}")
        logits.append(logit)
    v = g.add("Sigmoid", [z], f"{name}.noise")
    v = g.add("DepthToSpace", [v], f"{name}.unsqueeze", blocksize=2, mode="DCR")
    v = g.add("Transpose", [v], name, perm=[0, 2, 3, 1])
    # Value by value, since they nearly cancel: log u + log(1 - u) of the logit, softplus(z) + softplus(-z) of the
    # sigmoid; then softplus(-logit) - ln 2 of the couplings.
    above = g.add("Softplus", [z], f"{name}.softplus")
    below = g.add("Neg", [z], f"{name}.minus_z")
    below = g.add("Softplus", [below], f"{name}.softplus_minus")
    ends = g.add("Sum", [*log_noise, above, below], f"{name}.minus_log_ends")
    x = g.add("Concat", logits, f"{name}.logits", axis=1)
    x = g.add("Neg", [x], f"{name}.minus_logits")
    x = g.add("Softplus", [x], f"{name}.minus_log_sigmoid")
    x = g.add("Sub", [x, g.constant(f"{name}.ln2", math.log(2))], f"{name}.minus_log_scale")
    x = g.add("Concat", [ends, x], f"{name}.minus_log_dets", axis=1)
    size = (4 * channels + 2 * channels * len(logits)) * (glow.image_size // 2) ** 2
    x = minus_sum(g, x, size, f"{name}.varying")
    drawn_in = g.constant(f"{name}.constant", glow.dimensions * math.log1p(-2 * dequantization.margin))
    return v, g.add("Add", [x, drawn_in], f"{name}.log_det")


def _logit(g: Graph, margin: float, name: str) -> tuple[str, list[str]]:
    """logit(u), squeezed, of the noise u, drawn in; and log u and log(1 - u), squeezed.

    Near 0, 1 - noise is exact and 1 - u is not: each is drawn in by itself.
    """
    x = g.add("Transpose", ["noise"], f"{name}.planes", perm=[0, 3, 1, 2])
    x = g.add("SpaceToDepth", [x], f"{name}.squeeze", blocksize=2)
    rest = g.add("Sub", [g.constant("one", 1.0), x], f"{name}.rest")
    factor, offset = g.constant(f"{name}.factor", 1 - 2 * margin), g.constant(f"{name}.margin", margin)
    logs = []
    for uniform, suffix in ((x, "u"), (rest, "1-u")):
        u = g.add("Mul", [uniform, factor], f"{name}.{suffix}.scaled")
        u = g.add("Add", [u, offset], f"{name}.{suffix}")
        logs.append(g.add("Log", [u], f"{name}.{suffix}.log"))
    return g.add("Sub", logs, f"{name}.logit"), logs


def _squeezed_middles(g: Graph, bins: str, n_bits: int, name: str) -> str:
    """The middles of bins [N, H, W, C] on the flow's scale, [N, 4C, H/2, W/2]."""
    x = g.add("Mul", [bins, g.constant("bin.width", 2.0**-n_bits)], f"{name}.unit")
    x = g.add("Add", [x, g.constant("bin.first_middle", 2.0 ** -(n_bits + 1) - 0.5)], f"{name}.centred")
    x = g.add("Transpose", [x], f"{name}.planes", perm=[0, 3, 1, 2])
    return g.add("SpaceToDepth", [x], f"{name}.squeeze", blocksize=2)


def _noise_coupling(g: Graph, z: str, context: str, network: BakedNetwork, name: str) -> tuple[str, str]:
    """What a coupling of the noise makes of z, the halves having changed places; and the logit of its scale."""
    half = network[2].bias.size // 2
    passive, active = g.split(z, [half, half], f"{name}.halves")
    steering = g.add("Concat", [passive, context], f"{name}.steering", axis=1)
    shift, logit = coupling_network(g, steering, network, half, name, affine=True)
    changed = g.add("Add", [active, shift], f"{name}.shifted")
    scale = g.add("Sigmoid", [logit], f"{name}.half_scale")
    scale = g.add("Mul", [scale, g.constant("two", 2.0)], f"{name}.scale")
    changed = g.add("Mul", [changed, scale], f"{name}.scaled")
    return g.add("Concat", [changed, passive], name, axis=1), logit
