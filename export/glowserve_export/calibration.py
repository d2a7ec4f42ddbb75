"""How far the activations of the coupling networks reach on real images, and which networks int8 is good enough for.

Shapes: N images, H W C of the image; at a level [N, c, h, w].
"""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import TensorProto, helper

from glowserve.images import UInt8Array
from glowserve.runtime.engine import Float32Array
from glowserve.runtime.randomness import dequantization_noise
from glowserve.runtime.scoring import DEFAULT_SEED, bits_per_dim
from glowserve_export.baked import BakedConv, BakedGlow, Float64Array
from glowserve_export.errors import ExportError
from glowserve_export.graphs import forward_graph
from glowserve_export.precision import (
    FP32,
    PRECISIONS,
    Precision,
    Ranges,
    at_places,
)

# Bits per dimension that int8 may cost on average, and what calibration aims at: a bundle is measured on other images.
INT8_BOUND = 0.02
_INT8_AIM = 0.015

# Images that ranges are taken from, and that the cost of each network is measured on.
_RANGE_IMAGES = 512
_COST_IMAGES = 128
_BATCH = 32
# Of each step: what the network reads, what is behind either ReLU, and what it yields.
_WATCHED = ("halves.0", "relu1", "relu2", "conv3")


def calibrated(name: str, glow: BakedGlow, images: UInt8Array) -> Precision:
    """A precision by its name, with what it must know of the model.

    int8 is for as many coupling networks as it can be within `INT8_BOUND`: those to which it costs most stay float32.
    The cost of all is very nearly the sum of what each costs alone.

    Args:
        name: one of `PRECISIONS`.
        glow: whose networks are watched.
        images: uint8 [N, H, W, C], real ones, and none that the bundle is measured on. Only int8 looks at them, with
            the noise of the default seed; at most 512 are used.

    Raises:
        ExportError: there is no such precision, no image, the model diverges on them, or int8 costs it too much.
    """
    if name not in PRECISIONS:
        raise ExportError(f"precision is {name!r}; it must be one of {', '.join(PRECISIONS)}")
    if name != "int8":
        return Precision(name)
    if not len(images):
        raise ExportError(
            "there are no images to calibrate int8 on; give some, or export with precision fp32"
        )
    ranges = _ranges(glow, images[:_RANGE_IMAGES])
    images = images[:_COST_IMAGES]
    usual = _finite({"log_likelihood": _bits_per_dim(glow, FP32, images)}, "log_likelihood")
    everywhere = Precision(name, ranges)
    if _cost(glow, everywhere, images, usual) <= _INT8_AIM:
        return everywhere
    costs = {
        step: _cost(glow, Precision(name, {step: reached}), images, usual) for step, reached in ranges.items()
    }
    cheapest = sorted(costs, key=costs.__getitem__)
    totals = accumulate(costs[step] for step in cheapest)
    chosen = {step for step, total in zip(cheapest, totals, strict=True) if total <= _INT8_AIM}
    if not chosen:
        raise ExportError(
            f"int8 costs {costs[cheapest[0]]:.3g} bits/dim in {cheapest[0]}, and more in every other step; all that it "
            f"may cost is {INT8_BOUND:g}: export with precision fp32 or fp16"
        )
    return Precision(name, {step: reached for step, reached in ranges.items() if step in chosen})


def _ranges(glow: BakedGlow, images: UInt8Array) -> dict[str, Ranges]:
    names = [f"{step}.{tensor}" for step, _ in glow.named_steps() for tensor in _WATCHED]
    model = forward_graph(glow)
    model.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names)
    session = _session(model)
    ranges: dict[str, Ranges] = {}
    for i in range(0, len(images), _BATCH):
        part = images[i : i + _BATCH]
        outputs = session.run(names, {"image": part, "noise": dequantization_noise(DEFAULT_SEED, part)})
        values = dict(zip(names, outputs, strict=True))
        for step, baked in glow.named_steps():
            read, hidden1, hidden2, output = (_finite(values, f"{step}.{tensor}") for tensor in _WATCHED)
            reached = _reached(read, hidden1, hidden2, output, baked.network[2])
            ranges[step] = ranges[step].joined(reached) if step in ranges else reached
    return ranges


def _finite(values: dict[str, npt.NDArray[Any]], name: str) -> npt.NDArray[Any]:
    if not np.isfinite(values[name]).all():
        raise ExportError(
            f"{name} is not finite on calibration images: the model diverged; train it with a lower learning rate"
        )
    return values[name]


def _reached(
    read: Float32Array, hidden1: Float32Array, hidden2: Float32Array, output: Float32Array, last: BakedConv
) -> Ranges:
    unbiased = output - at_places(last.bias)
    return Ranges(
        read=np.abs(read).max(axis=(0, 2, 3)).astype(np.float64),
        hidden=(float(hidden1.max()), float(hidden2.max())),
        lowest=unbiased.min(axis=(0, 2, 3)),
        highest=unbiased.max(axis=(0, 2, 3)),
    )


def _cost(glow: BakedGlow, precision: Precision, images: UInt8Array, usual: Float64Array) -> float:
    """Bits per dimension that a precision costs on average against `usual`; not less than 0, which is chance."""
    loss = float((_bits_per_dim(glow, precision, images) - usual).mean())
    return max(loss, 0.0) if np.isfinite(loss) else np.inf


def _bits_per_dim(glow: BakedGlow, precision: Precision, images: UInt8Array) -> Float64Array:
    session = _session(forward_graph(glow, precision))
    nats = [
        session.run(["log_likelihood"], {"image": part, "noise": dequantization_noise(DEFAULT_SEED, part)})[0]
        for part in (images[i : i + _BATCH] for i in range(0, len(images), _BATCH))
    ]
    return bits_per_dim(np.concatenate(nats), glow.dimensions)


def _session(model: onnx.ModelProto) -> Any:
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
