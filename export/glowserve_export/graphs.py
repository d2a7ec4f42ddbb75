"""From BakedGlow to the two ONNX graphs, written node by node.

A step of flow is 12 nodes either way; variational dequantization, forward only, is 13 a coupling and 30 besides. No
inverse, determinant, triangular solve or random operator is left, and the batch is free.
`protos/glowserve/v1/manifest.proto` says what goes in and comes out.

Shapes: N images, H W C of the image; at a level [N, c, h, w].
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx
from glowserve_training.names import step_name
from onnx import TensorProto, helper

from glowserve_export.baked import (
    BakedConv,
    BakedGlow,
    BakedStep,
    Float64Array,
)
from glowserve_export.noise_graph import learned_noise
from glowserve_export.onnx_graph import (
    Graph,
    coupling_network,
    in_whole_lines,
    minus_sum,
)
from glowserve_export.precision import FP32, Precision

# In forward.onnx, what the flow sees of an image: bin + noise, [N, H, W, C].
DEQUANTIZED = "image.noisy"


def forward_graph(glow: BakedGlow, precision: Precision = FP32) -> onnx.ModelProto:
    """image, noise -> log_likelihood, latent, log_prior, log_det."""
    g = Graph()
    x, noise_log_det = _dequantized(g, glow)
    zero = None
    latents, log_dets = [], []
    for i, level in enumerate(glow.levels, 1):
        x = g.add("SpaceToDepth", [x], f"level{i}.squeeze", blocksize=2)
        logits = []
        for k, step in enumerate(level.steps, 1):
            x, logit = _forward_step(g, x, step, step_name(i, k), precision)
            logits += [logit] if logit else []
        active = sum(step.channels - step.channels // 2 for step in level.steps)
        size = active * (glow.image_size >> i) ** 2
        terms = [_log_sigmoid_sum(g, logits, size, f"level{i}")] if logits else []
        if level.prior is None:
            latent = _standardized_top(g, x, glow)
        else:
            half = level.steps[0].channels // 2
            x, z = g.split(x, [half, half], f"level{i}.split")
            size = half * (glow.image_size >> i) ** 2
            latent, term = _standardized_split(g, x, z, level.prior, size, f"level{i}.prior")
            terms.append(term)
        if noise_log_det and i == 1:
            terms.append(noise_log_det)
        if not terms:  # an additive top level: 0 for each image
            zero = zero or _zeros(g)
            terms = [zero]
        latents.append(g.add("Flatten", [latent], f"level{i}.latent", axis=1))
        sum_ = "Add" if len(terms) == 2 else "Sum"
        log_dets.append(terms[0] if len(terms) == 1 else g.add(sum_, terms, f"level{i}.log_det"))
    g.add("Concat", latents, "latent", axis=1)
    g.add("Concat", log_dets, "log_det", axis=1)
    _log_prior(g, glow, latents)
    _log_likelihood(g, glow)
    image: list[str | int | None] = ["N", glow.image_size, glow.image_size, glow.channels]
    return g.model(
        "glow_forward",
        [
            helper.make_tensor_value_info("image", TensorProto.UINT8, image),
            helper.make_tensor_value_info("noise", TensorProto.FLOAT, image),
        ],
        [
            helper.make_tensor_value_info("log_likelihood", TensorProto.FLOAT, ["N"]),
            helper.make_tensor_value_info("latent", TensorProto.FLOAT, ["N", glow.dimensions]),
            helper.make_tensor_value_info("log_prior", TensorProto.FLOAT, ["N", len(glow.levels)]),
            helper.make_tensor_value_info("log_det", TensorProto.FLOAT, ["N", len(glow.levels)]),
        ],
    )


def reverse_graph(glow: BakedGlow, precision: Precision = FP32) -> onnx.ModelProto:
    """Latent -> image, pixels; with the same precision, what undoes `forward_graph`."""
    g = Graph()
    shapes = glow.latent_shapes()
    flat = ["latent"]
    if len(shapes) > 1:
        flat = g.split("latent", [math.prod(shape) for shape in shapes], "latents")
    parts = [
        g.add(
            "Reshape", [part, g.constant(f"level{i}.latent.shape", np.array([0, *shape]))], f"level{i}.latent"
        )
        for i, (part, shape) in enumerate(zip(flat, shapes, strict=True), 1)
    ]
    x = ""
    for i, level in reversed(list(enumerate(glow.levels, 1))):
        if level.prior is None:
            x = _unstandardized_top(g, parts[i - 1], glow)
        else:
            x = _unstandardized_split(g, x, parts[i - 1], level.prior, f"level{i}.prior")
        for k, step in reversed(list(enumerate(level.steps, 1))):
            x = _reverse_step(g, x, step, step_name(i, k), precision)
        x = g.add("DepthToSpace", [x], f"level{i}.unsqueeze", blocksize=2, mode="DCR")
    _quantized(g, x, glow)
    image: list[str | int | None] = ["N", glow.image_size, glow.image_size, glow.channels]
    return g.model(
        "glow_reverse",
        [helper.make_tensor_value_info("latent", TensorProto.FLOAT, ["N", glow.dimensions])],
        [
            helper.make_tensor_value_info("image", TensorProto.UINT8, image),
            helper.make_tensor_value_info("pixels", TensorProto.FLOAT, image),
        ],
    )


def _dequantized(g: Graph, glow: BakedGlow) -> tuple[str, str | None]:
    """uint8 [N, H, W, C] and noise to y [N, C, H, W] in [-0.5, 0.5), and the log-determinant of the noise's map."""
    x = g.add("Cast", ["image"], "image.float", to=TensorProto.FLOAT)
    if glow.n_bits < 8:
        x = g.add("Mul", [x, g.constant("bin.per_grey", 2.0 ** (glow.n_bits - 8))], "image.scaled")
        x = g.add("Floor", [x], "image.bin")
    noise, log_det = "noise", None
    if glow.dequantization:
        noise, log_det = learned_noise(g, x, glow.dequantization, glow)
    x = g.add("Add", [x, noise], DEQUANTIZED)
    x = g.add("Mul", [x, g.constant("bin.width", 2.0**-glow.n_bits)], "image.unit")
    x = g.add("Sub", [x, g.constant("half", 0.5)], "image.centred")
    return g.add("Transpose", [x], "image.planes", perm=[0, 3, 1, 2]), log_det


def _quantized(g: Graph, x: str, glow: BakedGlow) -> None:
    """Y [N, C, H, W] to pixels [N, H, W, C], in bins, and to the uint8 image."""
    x = g.add("Transpose", [x], "image.centred", perm=[0, 2, 3, 1])
    x = g.add("Add", [x, g.constant("half", 0.5)], "image.unit")
    x = g.add("Mul", [x, g.constant("bins", 2.0**glow.n_bits)], "pixels")
    x = g.add("Floor", [x], "pixels.floor")
    top = 2**glow.n_bits - 1
    x = g.add("Clip", [x, g.constant("bin.first", 0.0), g.constant("bin.last", float(top))], "pixels.bin")
    if glow.n_bits < 8:
        x = g.add("Mul", [x, g.constant("grey.per_bin", 255 / top)], "pixels.grey")
        x = g.add("Round", [x], "pixels.round")
    g.add("Cast", [x], "image", to=TensorProto.UINT8)


def _forward_step(
    g: Graph, x: str, step: BakedStep, name: str, precision: Precision
) -> tuple[str, str | None]:
    """The step's output, called `name`, and the logit of its scale."""
    mix = BakedConv(step.matrix[:, :, None, None], step.bias)
    x = g.conv(x, mix, f"{name}.mix")
    half = step.channels // 2
    active_channels = step.channels - half
    passive, active = g.split(x, [half, active_channels], f"{name}.halves")
    shift, *logit = coupling_network(
        g, passive, step.network, active_channels, name, affine=step.affine, precision=precision
    )
    changed = g.add("Add", [active, shift], f"{name}.shifted")
    if logit:
        scale = g.add("Sigmoid", logit, f"{name}.scale")
        changed = g.add("Mul", [changed, scale], f"{name}.scaled")
    y = g.add("Concat", [passive, changed], name, axis=1)
    return y, logit[0] if logit else None


def _reverse_step(g: Graph, y: str, step: BakedStep, name: str, precision: Precision) -> str:
    """The step's input, called `name`."""
    half = step.channels // 2
    active_channels = step.channels - half
    passive, active = g.split(y, [half, active_channels], f"{name}.halves")
    shift, *logit = coupling_network(
        g, passive, step.network, active_channels, name, affine=step.affine, precision=precision
    )
    if logit:
        scale = g.add("Sigmoid", logit, f"{name}.scale")
        active = g.add("Div", [active, scale], f"{name}.unscaled")
    changed = g.add("Sub", [active, shift], f"{name}.unshifted")
    x = g.add("Concat", [passive, changed], f"{name}.joined", axis=1)
    return g.conv(x, BakedConv(step.inverse_matrix[:, :, None, None], step.inverse_bias), name)


def _log_sigmoid_sum(g: Graph, logits: Sequence[str], size: int, name: str) -> str:
    """The sum of log sigmoid over all logits of a level, `size` in all: -softplus(-logit), [N, 1]."""
    x = logits[0] if len(logits) == 1 else g.add("Concat", logits, f"{name}.logits", axis=1)
    x = g.add("Neg", [x], f"{name}.minus_logits")
    x = g.add("Softplus", [x], f"{name}.minus_log_scale")
    return minus_sum(g, x, size, f"{name}.coupling_log_det")


def _standardized_split(
    g: Graph, onward: str, z: str, prior: BakedConv, size: int, name: str
) -> tuple[str, str]:
    """(z - mean) / exp(log_scale), and minus the sum of log_scale."""
    mean, log_scale = _prior(g, onward, prior, name)
    centred = g.add("Sub", [z, mean], f"{name}.centred")
    scale = g.add("Exp", [log_scale], f"{name}.scale")
    latent = g.add("Div", [centred, scale], f"{name}.latent")
    return latent, minus_sum(g, log_scale, size, f"{name}.log_det")


def _unstandardized_split(g: Graph, onward: str, latent: str, prior: BakedConv, name: str) -> str:
    """Mean + latent * exp(log_scale), beside what went on."""
    mean, log_scale = _prior(g, onward, prior, name)
    scale = g.add("Exp", [log_scale], f"{name}.scale")
    scaled = g.add("Mul", [latent, scale], f"{name}.scaled")
    z = g.add("Add", [scaled, mean], f"{name}.z")
    return g.add("Concat", [onward, z], f"{name}.joined", axis=1)


def _prior(g: Graph, onward: str, prior: BakedConv, name: str) -> list[str]:
    half = prior.weight.shape[0] // 2
    x = g.conv(onward, prior, f"{name}.conv")
    return g.split(x, [half, half], f"{name}.mean_log_scale")


def _standardized_top(g: Graph, x: str, glow: BakedGlow) -> str:
    scale = np.exp(-glow.top_log_scale)
    x = g.add("Mul", [x, g.constant("top.scale", _at_places(scale))], "top.scaled")
    offset = g.constant("top.offset", _at_places(-glow.top_mean * scale))
    return g.add("Add", [x, offset], "top.latent")


def _unstandardized_top(g: Graph, latent: str, glow: BakedGlow) -> str:
    scale = g.constant("top.scale", _at_places(np.exp(glow.top_log_scale)))
    x = g.add("Mul", [latent, scale], "top.scaled")
    return g.add("Add", [x, g.constant("top.mean", _at_places(glow.top_mean))], "top.z")


def _at_places(values: Float64Array) -> Float64Array:
    """Values of channels, [C] or [C, H, W], as [C, 1, 1] or as they are."""
    return values if values.ndim == 3 else values[:, None, None]


def _log_prior(g: Graph, glow: BakedGlow, latents: Sequence[str]) -> None:
    """Each level's standard normal log-density, [N, L]."""
    axis = g.constant("log_prior.axis", np.array([1]))
    sizes = np.array([math.prod(shape) for shape in glow.latent_shapes()])
    squares = []
    for latent, size in zip(latents, sizes.tolist(), strict=True):
        row = in_whole_lines(g, latent, size, f"{latent}.square")
        squares.append(g.add("ReduceSumSquare", [row, axis], f"{latent}.square", keepdims=1))
    x = squares[0] if len(squares) == 1 else g.add("Concat", squares, "latent.squares", axis=1)
    x = g.add("Mul", [x, g.constant("minus_half", -0.5)], "log_prior.unnormalized")
    g.add(
        "Add",
        [x, g.constant("log_prior.constant", -0.5 * math.log(2 * math.pi) * sizes[None, :])],
        "log_prior",
    )


def _log_likelihood(g: Graph, glow: BakedGlow) -> None:
    """The sum of log_prior, log_det and the constant, [N], column by column: see `in_whole_lines`."""
    parts = g.add("Concat", ["log_prior", "log_det"], "parts", axis=1)
    columns = g.split(parts, [1] * (2 * len(glow.levels)), "parts.columns")
    total = g.add("Sum", columns, "parts.sum")
    total = g.add("Add", [total, g.constant("log_det_constant", glow.log_det_constant)], "parts.total")
    g.add("Reshape", [total, g.constant("parts.shape", np.array([-1]))], "log_likelihood")


def _zeros(g: Graph) -> str:
    """[N, 1] of zeros, from what is always finite."""
    flat = g.add("Flatten", ["noise"], "zero.flat", axis=1)
    total = g.add("ReduceMax", [flat, g.constant("zero.axis", np.array([1]))], "zero.max", keepdims=1)
    return g.add("Mul", [total, g.constant("zero.factor", 0.0)], "zero")
