"""The way from image and noise to the latent, level by level: what forward.onnx and explain.onnx have in common.

Shapes: N images; C H W of a level.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx
from glowserve_training.names import pixel_coupling_name, step_name
from onnx import TensorProto

from glowserve_export.builder import GraphBuilder, float_info, image_info
from glowserve_export.couplings import FoldedCoupling, add_log_det
from glowserve_export.folded import FoldedGlow, FoldedLevel
from glowserve_export.graphs.top import standardized_top
from glowserve_export.noise import NoiseNodes, UniformNoiseNodes
from glowserve_export.precision import Precision
from glowserve_export.terms import Term


@dataclass(frozen=True)
class LevelNodes:
    """A level in a graph."""

    latent: str
    """Its latent, [N, C, H, W]."""

    terms: list[Term]
    """Its log-determinants; those of level 1 include what comes before it."""


def image_and_noise(glow: FoldedGlow) -> list[onnx.ValueInfoProto]:
    """The inputs of a graph that `add_levels` begins."""
    shape = ("N", *glow.image_shape)
    return [image_info("image", *shape), float_info("noise", *shape)]


def add_levels(g: GraphBuilder, glow: FoldedGlow, precision: Precision) -> Iterator[LevelNodes]:
    """Adds the nodes of each level, level 1 first, when it is asked for."""
    x, input_terms = _flow_input(g, glow)
    x, pixel_terms = _pixel_couplings(g, x, glow, precision)
    for i, level in enumerate(glow.levels, 1):
        x, latent, terms = _level(g, x, glow, level, i, precision)
        yield LevelNodes(latent, [*terms, *input_terms, *pixel_terms] if i == 1 else terms)


def _flow_input(g: GraphBuilder, glow: FoldedGlow) -> tuple[str, list[Term]]:
    """The flow's input [N, C, H, W], and the log-determinants of dequantization and preprocessing."""
    x = g.add("Cast", ["image"], "image.float", to=TensorProto.FLOAT)
    if glow.n_bits < 8:
        x = g.add("Mul", [x, g.constant("bin.per_grey", 2.0 ** (glow.n_bits - 8))], "image.scaled")
        x = g.add("Floor", [x], "image.bin")
    noise: NoiseNodes = UniformNoiseNodes(g)
    if glow.dequantization:
        noise = glow.dequantization.add_forward(
            g, x, n_bits=glow.n_bits, image_size=glow.image_size, channels=glow.channels
        )
    x, log_dets = glow.preprocessing.add_forward(
        g, x, noise, glow.n_bits, image_size=glow.image_size, channels=glow.channels
    )
    return x, [*noise.log_dets, *log_dets]


def _pixel_couplings(
    g: GraphBuilder, x: str, glow: FoldedGlow, precision: Precision
) -> tuple[str, list[Term]]:
    """The input of level 1 before its squeeze, and the log-determinant of the couplings."""
    scales = []
    for k, coupling in enumerate(glow.pixel_couplings, 1):
        x, log_scale = coupling.add_forward(g, x, pixel_coupling_name(k), precision=precision)
        scales += [(coupling, log_scale)] if log_scale else []
    return x, add_log_det(g, scales, glow.image_size, "pixels")


def _level(
    g: GraphBuilder, x: str, glow: FoldedGlow, level: FoldedLevel, i: int, precision: Precision
) -> tuple[str, str, list[Term]]:
    """The input of the next level, the latent of this level, and its log-determinants."""
    x = g.add("SpaceToDepth", [x], f"level{i}.squeeze", blocksize=2)
    scales: list[tuple[FoldedCoupling, str]] = []
    for k, step in enumerate(level.steps, 1):
        x, log_scale = step.add_forward(g, x, step_name(i, k), precision)
        scales += [(step.coupling, log_scale)] if log_scale else []
    size = glow.image_size.halved(i)
    terms = add_log_det(g, scales, size, f"level{i}")
    if level.split is None:
        return x, standardized_top(g, x, glow), terms
    x, latent, log_det = level.split.add_forward(g, x, size, f"level{i}")
    return x, latent, [*terms, log_det]
