"""forward.onnx: image and noise to log-likelihood and latent. A step of flow is 12 nodes, 14 if its scale is bounded.

Shapes: N images, H W C of an image, D = H * W * C, L levels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx

from glowserve_export.builder import GraphBuilder, float_info
from glowserve_export.folded import FoldedGlow
from glowserve_export.graphs.levels import add_levels, image_and_noise
from glowserve_export.precision import FP32, Precision


def forward_graph(glow: FoldedGlow, precision: Precision = FP32) -> onnx.ModelProto:
    """The graph image, noise -> log_likelihood, latent, log_prior, log_det; with classes also log_posterior."""
    g = GraphBuilder()
    latents, log_dets = [], []
    for i, level in enumerate(add_levels(g, glow, precision), 1):
        # Only the top level of an additive flow has no log-determinants that depend on the image.
        totals = [term.total for term in level.terms] or [_zeros(g)]
        latents.append(g.add("Flatten", [level.latent], f"level{i}.latent", axis=1))
        log_dets.append(_sum(g, totals, f"level{i}.log_det"))
    g.add("Concat", latents, "latent", axis=1)
    constant = glow.preprocessing.constant(glow.n_bits, glow.dimensions)
    log_det = g.add("Concat", log_dets, "log_det.varying" if constant else "log_det", axis=1)
    _log_prior(g, glow, latents)
    _log_likelihood(g, glow, log_det, constant)
    if constant:
        level1 = constant * (np.arange(len(glow.levels)) == 0)
        g.add("Add", [log_det, g.constant("log_det.constant", level1[None, :])], "log_det")
    return g.model(
        "glow_forward",
        image_and_noise(glow),
        [
            float_info("log_likelihood", "N"),
            float_info("latent", "N", glow.dimensions),
            float_info("log_prior", "N", len(glow.levels)),
            float_info("log_det", "N", len(glow.levels)),
            *([float_info("log_posterior", "N", len(glow.classes))] if glow.classes else []),
        ],
    )


def _sum(g: GraphBuilder, terms: Sequence[str], name: str) -> str:
    if len(terms) == 1:
        return terms[0]
    return g.add("Add" if len(terms) == 2 else "Sum", terms, name)


def _log_prior(g: GraphBuilder, glow: FoldedGlow, latents: Sequence[str]) -> None:
    """The log-density of each level's latents, [N, L]: the standard normal one, and what classes add to it."""
    axis = g.constant("log_prior.axis", np.array([1]))
    sizes = np.array([math.prod(shape) for shape in glow.latent_shapes()])
    squares = []
    for latent, size in zip(latents, sizes.tolist(), strict=True):
        row = g.padded_rows(latent, size, f"{latent}.square")
        squares.append(g.add("ReduceSumSquare", [row, axis], f"{latent}.square", keepdims=1))
    x = squares[0] if len(squares) == 1 else g.add("Concat", squares, "latent.squares", axis=1)
    x = g.add("Mul", [x, g.constant("minus_half", -0.5)], "log_prior.unnormalized")
    constant = -0.5 * math.log(2 * math.pi) * sizes[None, :]
    name = "log_prior.standard" if glow.classes else "log_prior"
    x = g.add("Add", [x, g.constant("log_prior.constant", constant)], name)
    if glow.classes:
        added = glow.classes.add_forward(g, latents).by_level
        added = [g.add("Concat", added, "classes.levels", axis=1)] if len(added) > 1 else added
        g.add("Add", [x, *added], "log_prior")


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
