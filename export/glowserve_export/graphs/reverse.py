"""reverse.onnx: latent to image. A step of flow is 12 nodes, 14 if its scale is bounded.

Shapes: N images, H W C of an image, D = H * W * C.
"""

from __future__ import annotations

import math

import numpy as np
import onnx
from glowserve_training.names import pixel_coupling_name, step_name
from onnx import TensorProto

from glowserve_export.builder import GraphBuilder, class_info, float_info, image_info
from glowserve_export.folded import FoldedGlow
from glowserve_export.graphs.top import unstandardized_top
from glowserve_export.precision import FP32, Precision


def reverse_graph(glow: FoldedGlow, precision: Precision = FP32) -> onnx.ModelProto:
    """The graph latent -> image, pixels: the inverse of `forward_graph` in the same precision.

    With classes there is another input, class: of each latent, which is standard normal; or -1 for a latent of
    `forward_graph`.
    """
    g = GraphBuilder()
    latents = _latents_by_level(g, glow)
    x = ""
    for i, level in reversed(list(enumerate(glow.levels, 1))):
        if level.split is None:
            x = unstandardized_top(g, latents[i - 1], glow)
        else:
            x = level.split.add_reverse(g, x, latents[i - 1], f"level{i}")
        for k, step in reversed(list(enumerate(level.steps, 1))):
            x = step.add_reverse(g, x, step_name(i, k), precision)
        x = g.add("DepthToSpace", [x], f"level{i}.unsqueeze", blocksize=2, mode="DCR")
    for k, coupling in reversed(list(enumerate(glow.pixel_couplings, 1))):
        name = pixel_coupling_name(k)
        x = coupling.add_reverse(g, x, name, output=name, precision=precision)
    _quantized(g, glow.preprocessing.add_reverse(g, x, glow.n_bits), glow)
    image = ("N", *glow.image_shape)
    return g.model(
        "glow_reverse",
        [float_info("latent", "N", glow.dimensions), *([class_info("class", "N")] if glow.classes else [])],
        [image_info("image", *image), float_info("pixels", *image)],
    )


def _latents_by_level(g: GraphBuilder, glow: FoldedGlow) -> list[str]:
    """Each level's latents, [N, C, H, W] of the level."""
    shapes = glow.latent_shapes()
    flat = [glow.classes.add_reverse(g, "latent", "class") if glow.classes else "latent"]
    if len(shapes) > 1:
        flat = g.split(flat[0], [math.prod(shape) for shape in shapes], "latents")
    return [
        g.add(
            "Reshape", [part, g.constant(f"level{i}.latent.shape", np.array([0, *shape]))], f"level{i}.latent"
        )
        for i, (part, shape) in enumerate(zip(flat, shapes, strict=True), 1)
    ]


def _quantized(g: GraphBuilder, pixels: str, glow: FoldedGlow) -> None:
    """Pixels in bins to the uint8 image, both [N, H, W, C]."""
    x = g.add("Floor", [pixels], "pixels.floor")
    last = 2**glow.n_bits - 1
    x = g.add("Clip", [x, g.constant("bin.first", 0.0), g.constant("bin.last", float(last))], "pixels.bin")
    if glow.n_bits < 8:
        x = g.add("Mul", [x, g.constant("grey.per_bin", 255 / last)], "pixels.grey")
        x = g.add("Round", [x], "pixels.round")
    g.add("Cast", [x], "image", to=TensorProto.UINT8)
