"""From BakedGlow to the two ONNX graphs, written node by node.

A step of flow is 12 nodes either way; variational dequantization, forward only, is 13 a coupling and 30 besides. No
inverse, determinant, triangular solve or random operator is left, and the batch is free.
`protos/glowserve/v1/manifest.proto` says what goes in and comes out.

Shapes: N images, H W C of the image; at a level [N, c, h, w].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from export.baked import (
    DEQUANTIZATION,
    BakedConv,
    BakedDequantization,
    BakedGlow,
    BakedNetwork,
    BakedStep,
    Float64Array,
)
from training.names import step_name

# Any ONNX Runtime since 1.17 reads these.
_OPSET = 18
_IR_VERSION = 9
# float32 values in a line of memory, 64 bytes: the widest that processors load at once.
_LINE = 16
# In forward.onnx, what the flow sees of an image: bin + noise, [N, H, W, C].
DEQUANTIZED = "image.noisy"


class _Graph:
    """A graph in the making: nodes and constants, each tensor with a name."""

    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, onnx.TensorProto] = {}

    def add(self, operator: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        """A node with one output, called like it; returns the name."""
        self._nodes.append(helper.make_node(operator, inputs, [output], name=output, **attributes))
        return output

    def split(self, x: str, sizes: Sequence[int], name: str) -> list[str]:
        """X in pieces along axis 1."""
        outputs = [f"{name}.{i}" for i in range(len(sizes))]
        lengths = self.constant(f"{name}.sizes", np.asarray(sizes, np.int64))
        self._nodes.append(helper.make_node("Split", [x, lengths], outputs, name=name, axis=1))
        return outputs

    def constant(self, name: str, value: npt.ArrayLike | Float64Array) -> str:
        """A constant, float32 unless it is integer."""
        array = np.asarray(value)
        if array.dtype == np.float64:
            array = array.astype(np.float32)
        self._constants[name] = numpy_helper.from_array(np.ascontiguousarray(array), name)
        return name

    def conv(self, x: str, conv: BakedConv, output: str) -> str:
        """A convolution with constant weights that keeps the size."""
        kernel = conv.weight.shape[2]
        weight = self.constant(f"{output}.weight", conv.weight)
        bias = self.constant(f"{output}.bias", conv.bias)
        return self.add("Conv", [x, weight, bias], output, kernel_shape=[kernel] * 2, pads=[kernel // 2] * 4)

    def model(
        self, name: str, inputs: Sequence[onnx.ValueInfoProto], outputs: Sequence[onnx.ValueInfoProto]
    ) -> onnx.ModelProto:
        graph = helper.make_graph(self._nodes, name, inputs, outputs, list(self._constants.values()))
        model = helper.make_model(
            graph, producer_name="glowserve", opset_imports=[helper.make_opsetid("", _OPSET)]
        )
        model.ir_version = _IR_VERSION
        return model


def forward_graph(glow: BakedGlow) -> onnx.ModelProto:
    """image, noise -> log_likelihood, latent, log_prior, log_det."""
    g = _Graph()
    x, noise_log_det = _dequantized(g, glow)
    zero = None
    latents, log_dets = [], []
    for i, level in enumerate(glow.levels, 1):
        x = g.add("SpaceToDepth", [x], f"level{i}.squeeze", blocksize=2)
        logits = []
        for k, step in enumerate(level.steps, 1):
            x, logit = _forward_step(g, x, step, step_name(i, k))
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


def reverse_graph(glow: BakedGlow) -> onnx.ModelProto:
    """Latent -> image, pixels."""
    g = _Graph()
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
            x = _reverse_step(g, x, step, step_name(i, k))
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


def _dequantized(g: _Graph, glow: BakedGlow) -> tuple[str, str | None]:
    """uint8 [N, H, W, C] and noise to y [N, C, H, W] in [-0.5, 0.5), and the log-determinant of the noise's map."""
    x = g.add("Cast", ["image"], "image.float", to=TensorProto.FLOAT)
    if glow.n_bits < 8:
        x = g.add("Mul", [x, g.constant("bin.per_grey", 2.0 ** (glow.n_bits - 8))], "image.scaled")
        x = g.add("Floor", [x], "image.bin")
    noise, log_det = "noise", None
    if glow.dequantization:
        noise, log_det = _learned_noise(g, x, glow.dequantization, glow)
    x = g.add("Add", [x, noise], DEQUANTIZED)
    x = g.add("Mul", [x, g.constant("bin.width", 2.0**-glow.n_bits)], "image.unit")
    x = g.add("Sub", [x, g.constant("half", 0.5)], "image.centred")
    return g.add("Transpose", [x], "image.planes", perm=[0, 3, 1, 2]), log_det


def _learned_noise(
    g: _Graph, bins: str, dequantization: BakedDequantization, glow: BakedGlow
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
    x = _minus_sum(g, x, size, f"{name}.varying")
    drawn_in = g.constant(f"{name}.constant", glow.dimensions * math.log1p(-2 * dequantization.margin))
    return v, g.add("Add", [x, drawn_in], f"{name}.log_det")


def _logit(g: _Graph, margin: float, name: str) -> tuple[str, list[str]]:
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


def _squeezed_middles(g: _Graph, bins: str, n_bits: int, name: str) -> str:
    """The middles of bins [N, H, W, C] on the flow's scale, [N, 4C, H/2, W/2]."""
    x = g.add("Mul", [bins, g.constant("bin.width", 2.0**-n_bits)], f"{name}.unit")
    x = g.add("Add", [x, g.constant("bin.first_middle", 2.0 ** -(n_bits + 1) - 0.5)], f"{name}.centred")
    x = g.add("Transpose", [x], f"{name}.planes", perm=[0, 3, 1, 2])
    return g.add("SpaceToDepth", [x], f"{name}.squeeze", blocksize=2)


def _noise_coupling(g: _Graph, z: str, context: str, network: BakedNetwork, name: str) -> tuple[str, str]:
    """What a coupling of the noise makes of z, the halves having changed places; and the logit of its scale."""
    half = network[2].bias.size // 2
    passive, active = g.split(z, [half, half], f"{name}.halves")
    steering = g.add("Concat", [passive, context], f"{name}.steering", axis=1)
    shift, logit = _network(g, steering, network, half, name, affine=True)
    changed = g.add("Add", [active, shift], f"{name}.shifted")
    scale = g.add("Sigmoid", [logit], f"{name}.half_scale")
    scale = g.add("Mul", [scale, g.constant("two", 2.0)], f"{name}.scale")
    changed = g.add("Mul", [changed, scale], f"{name}.scaled")
    return g.add("Concat", [changed, passive], name, axis=1), logit


def _quantized(g: _Graph, x: str, glow: BakedGlow) -> None:
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


def _network(g: _Graph, x: str, network: BakedNetwork, active: int, name: str, *, affine: bool) -> list[str]:
    """A coupling network's shift of `active` channels and, of an affine coupling, the scale's logit."""
    first, second, last = network
    x = g.conv(x, first, f"{name}.conv1")
    x = g.add("Relu", [x], f"{name}.relu1")
    x = g.conv(x, second, f"{name}.conv2")
    x = g.add("Relu", [x], f"{name}.relu2")
    x = g.conv(x, last, f"{name}.conv3")
    return g.split(x, [active, active], f"{name}.shift_logit") if affine else [x]


def _forward_step(g: _Graph, x: str, step: BakedStep, name: str) -> tuple[str, str | None]:
    """The step's output, called `name`, and the logit of its scale."""
    mix = BakedConv(step.matrix[:, :, None, None], step.bias)
    x = g.conv(x, mix, f"{name}.mix")
    half = step.channels // 2
    active_channels = step.channels - half
    passive, active = g.split(x, [half, active_channels], f"{name}.halves")
    shift, *logit = _network(g, passive, step.network, active_channels, name, affine=step.affine)
    changed = g.add("Add", [active, shift], f"{name}.shifted")
    if logit:
        scale = g.add("Sigmoid", logit, f"{name}.scale")
        changed = g.add("Mul", [changed, scale], f"{name}.scaled")
    y = g.add("Concat", [passive, changed], name, axis=1)
    return y, logit[0] if logit else None


def _reverse_step(g: _Graph, y: str, step: BakedStep, name: str) -> str:
    """The step's input, called `name`."""
    half = step.channels // 2
    active_channels = step.channels - half
    passive, active = g.split(y, [half, active_channels], f"{name}.halves")
    shift, *logit = _network(g, passive, step.network, active_channels, name, affine=step.affine)
    if logit:
        scale = g.add("Sigmoid", logit, f"{name}.scale")
        active = g.add("Div", [active, scale], f"{name}.unscaled")
    changed = g.add("Sub", [active, shift], f"{name}.unshifted")
    x = g.add("Concat", [passive, changed], f"{name}.joined", axis=1)
    return g.conv(x, BakedConv(step.inverse_matrix[:, :, None, None], step.inverse_bias), name)


def _log_sigmoid_sum(g: _Graph, logits: Sequence[str], size: int, name: str) -> str:
    """The sum of log sigmoid over all logits of a level, `size` in all: -softplus(-logit), [N, 1]."""
    x = logits[0] if len(logits) == 1 else g.add("Concat", logits, f"{name}.logits", axis=1)
    x = g.add("Neg", [x], f"{name}.minus_logits")
    x = g.add("Softplus", [x], f"{name}.minus_log_scale")
    return _minus_sum(g, x, size, f"{name}.coupling_log_det")


def _minus_sum(g: _Graph, x: str, size: int, name: str) -> str:
    """Minus the sum over [c, h, w], `size` values in all, [N, 1]."""
    x = g.add("Flatten", [x], f"{name}.flat", axis=1)
    x = _in_whole_lines(g, x, size, name)
    x = g.add("ReduceSum", [x, g.constant(f"{name}.axis", np.array([1]))], f"{name}.sum", keepdims=1)
    return g.add("Neg", [x], name)


def _in_whole_lines(g: _Graph, x: str, size: int, name: str) -> str:
    """Rows of [N, size], filled up with zeros to whole lines of memory.

    ONNX Runtime adds up a row in an order that depends on where it begins in such a line. So filled, all rows
    begin alike, and an image's score does not depend on its place in the batch.
    """
    if not (missing := -size % _LINE):
        return x
    pads = g.constant(f"{name}.pads", np.array([0, 0, 0, missing]))
    return g.add("Pad", [x, pads], f"{name}.padded")


def _standardized_split(
    g: _Graph, onward: str, z: str, prior: BakedConv, size: int, name: str
) -> tuple[str, str]:
    """(z - mean) / exp(log_scale), and minus the sum of log_scale."""
    mean, log_scale = _prior(g, onward, prior, name)
    centred = g.add("Sub", [z, mean], f"{name}.centred")
    scale = g.add("Exp", [log_scale], f"{name}.scale")
    latent = g.add("Div", [centred, scale], f"{name}.latent")
    return latent, _minus_sum(g, log_scale, size, f"{name}.log_det")


def _unstandardized_split(g: _Graph, onward: str, latent: str, prior: BakedConv, name: str) -> str:
    """Mean + latent * exp(log_scale), beside what went on."""
    mean, log_scale = _prior(g, onward, prior, name)
    scale = g.add("Exp", [log_scale], f"{name}.scale")
    scaled = g.add("Mul", [latent, scale], f"{name}.scaled")
    z = g.add("Add", [scaled, mean], f"{name}.z")
    return g.add("Concat", [onward, z], f"{name}.joined", axis=1)


def _prior(g: _Graph, onward: str, prior: BakedConv, name: str) -> list[str]:
    half = prior.weight.shape[0] // 2
    x = g.conv(onward, prior, f"{name}.conv")
    return g.split(x, [half, half], f"{name}.mean_log_scale")


def _standardized_top(g: _Graph, x: str, glow: BakedGlow) -> str:
    scale = np.exp(-glow.top_log_scale)
    x = g.add("Mul", [x, g.constant("top.scale", scale[:, None, None])], "top.scaled")
    offset = g.constant("top.offset", (-glow.top_mean * scale)[:, None, None])
    return g.add("Add", [x, offset], "top.latent")


def _unstandardized_top(g: _Graph, latent: str, glow: BakedGlow) -> str:
    x = g.add(
        "Mul", [latent, g.constant("top.scale", np.exp(glow.top_log_scale)[:, None, None])], "top.scaled"
    )
    return g.add("Add", [x, g.constant("top.mean", glow.top_mean[:, None, None])], "top.z")


def _log_prior(g: _Graph, glow: BakedGlow, latents: Sequence[str]) -> None:
    """Each level's standard normal log-density, [N, L]."""
    axis = g.constant("log_prior.axis", np.array([1]))
    sizes = np.array([math.prod(shape) for shape in glow.latent_shapes()])
    squares = []
    for latent, size in zip(latents, sizes.tolist(), strict=True):
        row = _in_whole_lines(g, latent, size, f"{latent}.square")
        squares.append(g.add("ReduceSumSquare", [row, axis], f"{latent}.square", keepdims=1))
    x = squares[0] if len(squares) == 1 else g.add("Concat", squares, "latent.squares", axis=1)
    x = g.add("Mul", [x, g.constant("minus_half", -0.5)], "log_prior.unnormalized")
    sizes = np.array([math.prod(shape) for shape in glow.latent_shapes()])
    g.add(
        "Add",
        [x, g.constant("log_prior.constant", -0.5 * math.log(2 * math.pi) * sizes[None, :])],
        "log_prior",
    )


def _log_likelihood(g: _Graph, glow: BakedGlow) -> None:
    """The sum of log_prior, log_det and the constant, [N], column by column: see `_in_whole_lines`."""
    parts = g.add("Concat", ["log_prior", "log_det"], "parts", axis=1)
    columns = g.split(parts, [1] * (2 * len(glow.levels)), "parts.columns")
    total = g.add("Sum", columns, "parts.sum")
    total = g.add("Add", [total, g.constant("log_det_constant", glow.log_det_constant)], "parts.total")
    g.add("Reshape", [total, g.constant("parts.shape", np.array([-1]))], "log_likelihood")


def _zeros(g: _Graph) -> str:
    """[N, 1] of zeros, from what is always finite."""
    flat = g.add("Flatten", ["noise"], "zero.flat", axis=1)
    total = g.add("ReduceMax", [flat, g.constant("zero.axis", np.array([1]))], "zero.max", keepdims=1)
    return g.add("Mul", [total, g.constant("zero.factor", 0.0)], "zero")
