"""reverse.onnx: latent to image. A step of flow is 12 nodes.

Shapes: N images, H W C of an image, D = H * W * C.
"""

from __future__ import annotations

import math

import numpy as np
import onnx
from glowserve_training.names import step_name
from onnx import TensorProto

from glowserve_export.folded import FoldedConv, FoldedGlow, FoldedStep
from glowserve_export.graphs.builder import GraphBuilder, float_info, image_info
from glowserve_export.graphs.couplings import coupling_halves, joined_halves, unscaled
from glowserve_export.graphs.networks import coupling_network
from glowserve_export.graphs.priors import unstandardized_split, unstandardized_top
from glowserve_export.precision import FP32, Precision


def reverse_graph(glow: FoldedGlow, precision: Precision = FP32) -> onnx.ModelProto:
    """The graph latent -> image, pixels: the inverse of `forward_graph` in the same precision."""
    g = GraphBuilder()
    latents = _latents_by_level(g, glow)
    x = ""
    for i, level in reversed(list(enumerate(glow.levels, 1))):
        if level.prior is None:
            x = unstandardized_top(g, latents[i - 1], glow)
        else:
            x = unstandardized_split(g, x, latents[i - 1], level.prior, f"level{i}.prior")
        for k, step in reversed(list(enumerate(level.steps, 1))):
            x = _step(g, x, step, step_name(i, k), precision)
        x = g.add("DepthToSpace", [x], f"level{i}.unsqueeze", blocksize=2, mode="DCR")
    _quantized(g, x, glow)
    image = ("N", glow.image_size, glow.image_size, glow.channels)
    return g.model(
        "glow_reverse",
        [float_info("latent", "N", glow.dimensions)],
        [image_info("image", *image), float_info("pixels", *image)],
    )


def _latents_by_level(g: GraphBuilder, glow: FoldedGlow) -> list[str]:
    """Each level's latents, [N, C, H, W] of the level."""
    shapes = glow.latent_shapes()
    flat = ["latent"]
    if len(shapes) > 1:
        flat = g.split("latent", [math.prod(shape) for shape in shapes], "latents")
    return [
        g.add(
            "Reshape", [part, g.constant(f"level{i}.latent.shape", np.array([0, *shape]))], f"level{i}.latent"
        )
        for i, (part, shape) in enumerate(zip(flat, shapes, strict=True), 1)
    ]


def _step(g: GraphBuilder, y: str, step: FoldedStep, name: str, precision: Precision) -> str:
    """The step's input, a tensor called `name`."""
    half = step.channels // 2
    passive, active = coupling_halves(g, y, step, f"{name}.halves")
    shift, *logit = coupling_network(
        g, passive, step.network, half, name, affine=step.affine, precision=precision
    )
    if step.scale_map is not None:
        active = unscaled(g, active, logit[0], step.scale_map, name)
    active = g.add("Sub", [active, shift], f"{name}.unshifted")
    x = joined_halves(g, passive, active, step, f"{name}.joined")
    return g.conv(x, FoldedConv(step.inverse_matrix[:, :, None, None], step.inverse_bias), name)


def _quantized(g: GraphBuilder, x: str, glow: FoldedGlow) -> None:
    """The flow's output [N, C, H, W] to pixels in bins and to the uint8 image, both [N, H, W, C]."""
    x = g.add("Transpose", [x], "image.centred", perm=[0, 2, 3, 1])
    x = g.add("Add", [x, g.constant("half", 0.5)], "image.unit")
    x = g.add("Mul", [x, g.constant("bins", 2.0**glow.n_bits)], "pixels")
    x = g.add("Floor", [x], "pixels.floor")
    last = 2**glow.n_bits - 1
    x = g.add("Clip", [x, g.constant("bin.first", 0.0), g.constant("bin.last", float(last))], "pixels.bin")
    if glow.n_bits < 8:
        x = g.add("Mul", [x, g.constant("grey.per_bin", 255 / last)], "pixels.grey")
        x = g.add("Round", [x], "pixels.round")
    g.add("Cast", [x], "image", to=TensorProto.UINT8)
