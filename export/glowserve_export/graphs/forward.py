"""forward.onnx: image and noise to log-likelihood and latent. A step of flow is 12 nodes, 14 if its scale is bounded.

Shapes: N images, H W C of an image, D = H * W * C, L levels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx
from glowserve_training.names import pixel_coupling_name, step_name
from onnx import TensorProto

from glowserve_export.builder import GraphBuilder, float_info, image_info
from glowserve_export.couplings import FoldedCoupling, add_log_det
from glowserve_export.folded import FoldedGlow, FoldedLevel
from glowserve_export.graphs.top import standardized_top
from glowserve_export.noise import NoiseNodes, UniformNoiseNodes
from glowserve_export.precision import FP32, Precision


def forward_graph(glow: FoldedGlow, precision: Precision = FP32) -> onnx.ModelProto:
    """The graph image, noise -> log_likelihood, latent, log_prior, log_det."""
    g = GraphBuilder()
    x, input_terms = _flow_input(g, glow)
    x, pixel_terms = _pixel_couplings(g, x, glow, precision)
    latents, log_dets = [], []
    for i, level in enumerate(glow.levels, 1):
        x, latent, terms = _level(g, x, glow, level, i, precision)
        terms += [*input_terms, *pixel_terms] if i == 1 else []
        # Only the top level of an additive flow has no log-determinants that depend on the image.
        terms = terms or [_zeros(g)]
        latents.append(g.add("Flatten", [latent], f"level{i}.latent", axis=1))
        log_dets.append(_sum(g, terms, f"level{i}.log_det"))
    g.add("Concat", latents, "latent", axis=1)
    constant = glow.preprocessing.constant(glow.n_bits, glow.dimensions)
    log_det = g.add("Concat", log_dets, "log_det.varying" if constant else "log_det", axis=1)
    _log_prior(g, glow, latents)
    _log_likelihood(g, glow, log_det, constant)
    if constant:
        level1 = constant * (np.arange(len(glow.levels)) == 0)
        g.add("Add", [log_det, g.constant("log_det.constant", level1[None, :])], "log_det")
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


def _flow_input(g: GraphBuilder, glow: FoldedGlow) -> tuple[str, list[str]]:
    """The flow's input [N, C, H, W], and the log-determinants of dequantization and preprocessing, [N, 1] each."""
    x = g.add("Cast", ["image"], "image.float", to=TensorProto.FLOAT)
    if glow.n_bits < 8:
        x = g.add("Mul", [x, g.constant("bin.per_grey", 2.0 ** (glow.n_bits - 8))], "image.scaled")
        x = g.add("Floor", [x], "image.bin")
    noise: NoiseNodes = UniformNoiseNodes(g)
    if glow.dequantization:
        noise = glow.dequantization.add_forward(
            g, x, n_bits=glow.n_bits, image_size=glow.image_size, channels=glow.channels
        )
    x, log_dets = glow.preprocessing.add_forward(g, x, noise, glow.n_bits, glow.dimensions)
    return x, [*noise.log_dets, *log_dets]


def _pixel_couplings(
    g: GraphBuilder, x: str, glow: FoldedGlow, precision: Precision
) -> tuple[str, list[str]]:
    """The input of level 1 before its squeeze, and the log-determinant of the couplings, [N, 1] each."""
    scales = []
    for k, coupling in enumerate(glow.pixel_couplings, 1):
        x, log_scale = coupling.add_forward(g, x, pixel_coupling_name(k), precision=precision)
        scales += [(coupling, log_scale)] if log_scale else []
    return x, add_log_det(g, scales, glow.image_size**2, "pixels")


def _level(
    g: GraphBuilder, x: str, glow: FoldedGlow, level: FoldedLevel, i: int, precision: Precision
) -> tuple[str, str, list[str]]:
    """The input of the next level, the latent of this level, and log-determinants to add up, each [N, 1]."""
    x = g.add("SpaceToDepth", [x], f"level{i}.squeeze", blocksize=2)
    scales: list[tuple[FoldedCoupling, str]] = []
    for k, step in enumerate(level.steps, 1):
        x, log_scale = step.add_forward(g, x, step_name(i, k), precision)
        scales += [(step.coupling, log_scale)] if log_scale else []
    positions = (glow.image_size >> i) ** 2
    terms = add_log_det(g, scales, positions, f"level{i}")
    if level.split is None:
        return x, standardized_top(g, x, glow), terms
    x, latent, log_det = level.split.add_forward(g, x, positions, f"level{i}")
    return x, latent, [*terms, log_det]


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


def _log_likelihood(g: GraphBuilder, glow: FoldedGlow, log_det: str, constant: float) -> None:
    """The sum of log_prior, log_det and the constants, [N]: large ones that cancel out are added before float32.

    It is added column by column: a ReduceSum of rows would depend on their alignment, see `GraphBuilder.padded_rows`.
    """
    parts = g.add("Concat", ["log_prior", log_det], "parts", axis=1)
    columns = g.split(parts, [1] * (2 * len(glow.levels)), "parts.columns")
    total = g.add("Sum", columns, "parts.sum")
    total = g.add(
        "Add", [total, g.constant("log_det_constant", glow.log_det_constant + constant)], "parts.total"
    )
    g.add("Reshape", [total, g.constant("parts.shape", np.array([-1]))], "log_likelihood")


def _zeros(g: GraphBuilder) -> str:
    """Zeros [N, 1], computed from the noise, which is always finite."""
    flat = g.add("Flatten", ["noise"], "zero.flat", axis=1)
    maximum = g.add("ReduceMax", [flat, g.constant("zero.axis", np.array([1]))], "zero.max", keepdims=1)
    return g.add("Mul", [maximum, g.constant("zero.factor", 0.0)], "zero")
