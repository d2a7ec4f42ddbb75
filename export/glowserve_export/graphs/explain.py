"""explain.onnx: image and noise to the log-likelihood by place: every term at the pixels where it arises.

The logarithms of preprocessing, of the learned noise and of checkerboard couplings arise at a pixel. Couplings, splits
and standard normal densities of level l arise at a position that stands for a block of 2^l x 2^l pixels, and are spread
evenly over it. What is the same for every image is spread evenly over all pixels. The sum over all places is the
log-likelihood. Channels are added up: after the first 1x1 convolution no term belongs to one of them.

From the top level down, a 1x1 convolution adds up the values at each position of a level and distributes them over the
four positions below it, where the next convolution takes them up: a level costs two or three nodes.

Shapes: N images, H W of an image, L levels; P positions that a convolution distributes to, 4 or, of pixels, 1.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import onnx

from glowserve.image_size import ImageSize
from glowserve_export.builder import GraphBuilder, float_info
from glowserve_export.convolution import Float64Array, FoldedConv
from glowserve_export.folded import FoldedGlow
from glowserve_export.graphs.levels import add_levels, image_and_noise
from glowserve_export.precision import FP32, Precision
from glowserve_export.terms import Term


@dataclass(frozen=True)
class _Part:
    """Values at each position of a level, or at each pixel."""

    tensor: str
    """[N, C, H, W] of the level."""

    weights: Float64Array
    """What each position below gets of each channel, [P, C]."""


def explain_graph(glow: FoldedGlow, precision: Precision = FP32) -> onnx.ModelProto:
    """The graph image, noise -> terms [N, H, W]: nats, whose sum is the log_likelihood of `forward_graph`."""
    g = GraphBuilder()
    parts: defaultdict[ImageSize, list[_Part]] = defaultdict(list)  # by the size of a level, or of the image
    constant = (
        glow.log_det_constant
        + glow.preprocessing.constant(glow.n_bits, glow.dimensions)
        - 0.5 * math.log(2 * math.pi) * glow.dimensions
    )
    latents = []
    levels = add_levels(g, glow, precision)
    for level, (channels, *sides) in zip(levels, glow.latent_shapes(), strict=True):
        square = g.add("Mul", [level.latent, level.latent], f"{level.latent}.square")
        latents.append((level.latent, square))
        parts[ImageSize(*sides)].append(_Part(square, _evenly(-0.5, channels, 4)))
        for term in level.terms:
            parts[term.size].append(_Part(term.minus, _weights(term, glow)))
            constant += term.constant
    rest = _classes(g, glow, latents, parts) if glow.classes else ""
    x = ""
    for i in range(len(glow.levels), 0, -1):
        x = _distributed(g, x, parts[glow.image_size.halved(i)], f"terms.level{i}")
    _pixels(g, x, parts[glow.image_size], constant / glow.image_size.pixels)
    height, width, _ = glow.image_shape
    x = g.add("Add", ["terms.pixels", rest], "terms.all") if rest else "terms.pixels"
    g.add("Reshape", [x, g.constant("terms.shape", np.array([0, height, width]))], "terms")
    return g.model("glow_explain", image_and_noise(glow), [float_info("terms", "N", height, width)])


def _classes(
    g: GraphBuilder,
    glow: FoldedGlow,
    latents: list[tuple[str, str]],
    parts: defaultdict[ImageSize, list[_Part]],
) -> str:
    """Adds what the classes add at each level; the rest, which belongs to no place, at each pixel, [N, 1, 1, 1]."""
    assert glow.classes is not None
    flat = [g.add("Flatten", [latent], f"{latent}.flat", axis=1) for latent, _ in latents]
    nodes, placed = glow.classes.add_forward(g, flat), []
    for i, ((latent, square), shape) in enumerate(zip(latents, glow.latent_shapes(), strict=True)):
        places = glow.classes.add_places(g, nodes, i, latent, square, shape)
        parts[ImageSize(*shape[1:])].append(_Part(places, _evenly(1.0, shape[0], 4)))
        placed.append(g.minus_sum(places, math.prod(shape), f"{places}.minus"))
    rest = g.add("Sum", [nodes.total, *placed], "classes.rest")
    share = g.constant("classes.per_pixel", 1 / glow.image_size.pixels)
    rest = g.add("Mul", [rest, share], "classes.rest.pixel")
    return g.add(
        "Reshape", [rest, g.constant("classes.pixel", np.array([0, 1, 1, 1]))], "classes.rest.pixels"
    )


def _weights(term: Term, glow: FoldedGlow) -> Float64Array:
    if term.size == glow.image_size:
        return _evenly(-1.0, term.channels, 1)
    if term.pixels is None:
        return _evenly(-1.0, term.channels, 4)
    return np.where(term.pixels == np.arange(4)[:, None], -1.0, 0.0)


def _evenly(weight: float, channels: int, positions: int) -> Float64Array:
    return np.full((positions, channels), weight / positions)


def _distributed(g: GraphBuilder, above: str, parts: list[_Part], name: str) -> str:
    """The values of a level, and of those above it [N, 1, H, W], at the positions below it, [N, 1, 2H, 2W]."""
    own = [*parts, _Part(above, _evenly(1.0, 1, 4))] if above else parts
    x = _convolved(g, own, 0.0, f"{name}.blocks")
    return g.add("DepthToSpace", [x], name, blocksize=2, mode="DCR")


def _pixels(g: GraphBuilder, above: str, parts: list[_Part], constant: float) -> None:
    """The tensor "terms.pixels", [N, 1, H, W]: what arises at pixels, the values of all levels, and the constant."""
    _convolved(g, [*parts, _Part(above, _evenly(1.0, 1, 1))], constant, "terms.pixels")


def _convolved(g: GraphBuilder, parts: list[_Part], constant: float, name: str) -> str:
    tensors = [part.tensor for part in parts]
    x = tensors[0] if len(tensors) == 1 else g.add("Concat", tensors, f"{name}.values", axis=1)
    weights = np.concatenate([part.weights for part in parts], axis=1)
    return g.conv(x, FoldedConv(weights[:, :, None, None], np.full(len(weights), constant)), name)
