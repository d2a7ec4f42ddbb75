"""forward.onnx: image and noise to log-likelihood and latent. A step of flow is 12 nodes.

Shapes: N images, H W C of an image, D = H * W * C, L levels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx
from glowserve_training.names import step_name
from onnx import TensorProto

from glowserve_export.folded import FoldedConv, FoldedGlow, FoldedLevel, FoldedStep
from glowserve_export.graphs.builder import GraphBuilder, float_info, image_info
from glowserve_export.graphs.couplings import coupling_halves, joined_halves, scaled
from glowserve_export.graphs.networks import coupling_network
from glowserve_export.graphs.noise import learned_noise
from glowserve_export.graphs.priors import standardized_split, standardized_top
from glowserve_export.precision import FP32, Precision

# The tensor of forward.onnx with the flow's input in bins: bin + noise, [N, H, W, C].
DEQUANTIZED = "image.noisy"


def forward_graph(glow: FoldedGlow, precision: Precision = FP32) -> onnx.ModelProto:
    """The graph image, noise -> log_likelihood, latent, log_prior, log_det."""
    g = GraphBuilder()
    x, noise_log_det = _dequantized(g, glow)
    latents, log_dets = [], []
    for i, level in enumerate(glow.levels, 1):
        x, latent, terms = _level(g, x, glow, level, i, precision)
        terms += noise_log_det if i == 1 else []
        # Only the top level of an additive flow has no log-determinants that depend on the image.
        terms = terms or [_zeros(g)]
        latents.append(g.add("Flatten", [latent], f"level{i}.latent", axis=1))
        log_dets.append(_sum(g, terms, f"level{i}.log_det"))
    g.add("Concat", latents, "latent", axis=1)
    g.add("Concat", log_dets, "log_det", axis=1)
    _log_prior(g, glow, latents)
    _log_likelihood(g, glow)
    return _model(g, glow)


def _model(g: GraphBuilder, glow: FoldedGlow) -> onnx.ModelProto:
    image, levels = ("N", glow.image_size, glow.image_size, glow.channels), len(glow.levels)
    return g.model(
        "glow_forward",
        [image_info("image", *image), float_info("noise", *image)],
        [
            float_info("log_likelihood", "N"),
            float_info("latent", "N", glow.dimensions),
            float_info("log_prior", "N", levels),
            float_info("log_det", "N", levels),
        ],
    )


def _dequantized(g: GraphBuilder, glow: FoldedGlow) -> tuple[str, list[str]]:
    """The flow's input [N, C, H, W] in [-0.5, 0.5), and the log-determinant of variational dequantization, if any."""
    x = g.add("Cast", ["image"], "image.float", to=TensorProto.FLOAT)
    if glow.n_bits < 8:
        x = g.add("Mul", [x, g.constant("bin.per_grey", 2.0 ** (glow.n_bits - 8))], "image.scaled")
        x = g.add("Floor", [x], "image.bin")
    noise, log_det = "noise", []
    if glow.dequantization:
        noise, noise_log_det = learned_noise(g, x, glow.dequantization, glow)
        log_det = [noise_log_det]
    x = g.add("Add", [x, noise], DEQUANTIZED)
    x = g.add("Mul", [x, g.constant("bin.width", 2.0**-glow.n_bits)], "image.unit")
    x = g.add("Sub", [x, g.constant("half", 0.5)], "image.centred")
    return g.add("Transpose", [x], "image.planes", perm=[0, 3, 1, 2]), log_det


def _level(
    g: GraphBuilder, x: str, glow: FoldedGlow, level: FoldedLevel, i: int, precision: Precision
) -> tuple[str, str, list[str]]:
    """The input of the next level, the latent of this level, and log-determinants to add up, each [N, 1]."""
    x = g.add("SpaceToDepth", [x], f"level{i}.squeeze", blocksize=2)
    logits = []
    for k, step in enumerate(level.steps, 1):
        x, logit = _step(g, x, step, step_name(i, k), precision)
        logits += logit
    positions = (glow.image_size >> i) ** 2
    terms = [_log_scale_sum(g, logits, level, positions, f"level{i}")] if logits else []
    if level.prior is None:
        return x, standardized_top(g, x, glow), terms
    half = level.steps[0].channels // 2
    x, z = g.split(x, [half, half], f"level{i}.split")
    latent, log_det = standardized_split(g, x, z, level.prior, half * positions, f"level{i}.prior")
    return x, latent, [*terms, log_det]


def _step(
    g: GraphBuilder, x: str, step: FoldedStep, name: str, precision: Precision
) -> tuple[str, list[str]]:
    """The step's output, a tensor called `name`, and the logit of its scale, if affine."""
    mix = FoldedConv(step.matrix[:, :, None, None], step.bias)
    x = g.conv(x, mix, f"{name}.mix")
    half = step.channels // 2
    passive, active = coupling_halves(g, x, step, f"{name}.halves")
    shift, *logit = coupling_network(
        g, passive, step.network, half, name, affine=step.affine, precision=precision
    )
    transformed = g.add("Add", [active, shift], f"{name}.shifted")
    if step.scale_map is not None:
        transformed = scaled(g, transformed, logit[0], step.scale_map, name)
    return joined_halves(g, passive, transformed, step, name), logit


def _log_scale_sum(
    g: GraphBuilder, logits: Sequence[str], level: FoldedLevel, positions: int, name: str
) -> str:
    """The sum of all log-scales of a level, [N, 1]; log sigmoid(logit) = -softplus(-logit)."""
    (scale_map,) = {step.scale_map for step in level.steps}
    x = logits[0] if len(logits) == 1 else g.add("Concat", logits, f"{name}.logits", axis=1)
    x = g.add("Neg", [x], f"{name}.minus_logits")
    if scale_map == "sigmoid":
        x = g.add("Softplus", [x], f"{name}.minus_log_scale")
    elif scale_map == "inverse_sigmoid":
        x = g.add("Softplus", [x], f"{name}.log_scale")
        x = g.add("Neg", [x], f"{name}.minus_log_scale")
    size = sum(step.channels // 2 for step in level.steps) * positions
    return g.minus_sum(x, size, f"{name}.coupling_log_det")


def _sum(g: GraphBuilder, terms: Sequence[str], name: str) -> str:
    if len(terms) == 1:
        return terms[0]
    return g.add("Add" if len(terms) == 2 else "Sum", terms, name)


def _log_prior(g: GraphBuilder, glow: FoldedGlow, latents: Sequence[str]) -> None:
    """The standard normal log-density of each level's latents, [N, L]."""
    axis = g.constant("log_prior.axis", np.array([1]))
    sizes = np.array([math.prod(shape) for shape in glow.latent_shapes()])
    squares = []
    for latent, size in zip(latents, sizes.tolist(), strict=True):
        row = g.padded_rows(latent, size, f"{latent}.square")
        squares.append(g.add("ReduceSumSquare", [row, axis], f"{latent}.square", keepdims=1))
    x = squares[0] if len(squares) == 1 else g.add("Concat", squares, "latent.squares", axis=1)
    x = g.add("Mul", [x, g.constant("minus_half", -0.5)], "log_prior.unnormalized")
    constant = -0.5 * math.log(2 * math.pi) * sizes[None, :]
    g.add("Add", [x, g.constant("log_prior.constant", constant)], "log_prior")


def _log_likelihood(g: GraphBuilder, glow: FoldedGlow) -> None:
    """The sum of log_prior, log_det and the constant, [N].

    It is added column by column: a ReduceSum of rows would depend on their alignment, see `GraphBuilder.padded_rows`.
    """
    parts = g.add("Concat", ["log_prior", "log_det"], "parts", axis=1)
    columns = g.split(parts, [1] * (2 * len(glow.levels)), "parts.columns")
    total = g.add("Sum", columns, "parts.sum")
    total = g.add("Add", [total, g.constant("log_det_constant", glow.log_det_constant)], "parts.total")
    g.add("Reshape", [total, g.constant("parts.shape", np.array([-1]))], "log_likelihood")


def _zeros(g: GraphBuilder) -> str:
    """Zeros [N, 1], computed from the noise, which is always finite."""
    flat = g.add("Flatten", ["noise"], "zero.flat", axis=1)
    maximum = g.add("ReduceMax", [flat, g.constant("zero.axis", np.array([1]))], "zero.max", keepdims=1)
    return g.add("Mul", [maximum, g.constant("zero.factor", 0.0)], "zero")
