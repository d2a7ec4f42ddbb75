"""Calibrates int8: measures activation ranges on real images, and chooses the coupling networks to quantize.

Shapes: N images, H W C of an image; [N, C, H, W] inside the flow.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from tqdm import tqdm

from glowserve.images import UInt8Array
from glowserve.likelihood import bits_per_dim
from glowserve.runtime.engine import Float32Array
from glowserve.runtime.ort import onnxruntime
from glowserve.runtime.randomness import DEFAULT_SEED, dequantization_noise
from glowserve_export import workload
from glowserve_export.builder import add_outputs
from glowserve_export.convolution import Float64Array, FoldedConv, per_channel
from glowserve_export.errors import ExportError
from glowserve_export.folded import FoldedGlow, NamedCoupling
from glowserve_export.graphs import forward_graph
from glowserve_export.operations import operations as count_operations
from glowserve_export.precision import FP32, PRECISIONS, Precision, Ranges

# The mean loss in bits per dimension that int8 may cause. Calibration aims lower: verification uses other images.
INT8_BOUND = 0.02
_INT8_AIM = 0.015

# The most images to measure ranges on.
_RANGE_IMAGES = 512
# Of one batch: all couplings are measured at once.
_ACTIVATION_BYTES = 2**29


def calibrate(name: str, glow: FoldedGlow, images: UInt8Array) -> Precision:
    """Makes a `Precision` for a flow.

    int8 quantizes as many coupling networks as its loss bound allows, those with the smallest loss first: the loss of
    several networks is very nearly the sum of their losses.

    Args:
        name: one of `PRECISIONS`.
        glow: the flow.
        images: images that neither verification nor percentiles use, uint8 [N, H, W, C]. Only int8 uses
            them, at most 512 and fewer if the model is large, with the noise of the default seed.

    Raises:
        ExportError: the name is unknown; or int8 has no images, the model diverges on them, or every network loses too
            much.
    """
    if name not in PRECISIONS:
        raise ExportError(f"precision is {name!r}; it must be one of {', '.join(PRECISIONS)}")
    if name != "int8":
        return Precision(name)
    if not len(images):
        raise ExportError(
            "there are no images to calibrate int8 on; give some, or export with precision fp32"
        )
    operations = count_operations(forward_graph(glow))
    most = min(_RANGE_IMAGES, len(images))
    ranges = _measure_ranges(glow, images[: workload.percentile_images(operations, most)])
    few = workload.int8_loss_images(operations, len(ranges))
    return Precision(name, _choose(glow, ranges, images[:few]))


def _choose(glow: FoldedGlow, ranges: dict[str, Ranges], images: UInt8Array) -> dict[str, Ranges]:
    """The ranges of the networks to quantize, by coupling."""
    fp32 = _bits_per_dim(glow, FP32, images)
    _check_finite("log_likelihood", fp32)
    if _loss(glow, ranges, images, fp32) <= _INT8_AIM:
        return ranges
    losses = {
        name: _loss(glow, {name: ranges[name]}, images, fp32)
        for name in tqdm(
            ranges, desc="measuring the loss of each network", unit="", disable=None, leave=False
        )
    }
    ascending = sorted(losses, key=losses.__getitem__)
    totals = accumulate(losses[name] for name in ascending)
    chosen = {name for name, total in zip(ascending, totals, strict=True) if total <= _INT8_AIM}
    if not chosen:
        raise ExportError(
            f"int8 loses {losses[ascending[0]]:.3g} bits/dim in {ascending[0]} and more in every other coupling, "
            f"and the bound is {INT8_BOUND:g} for all together: export with precision fp32 or fp16"
        )
    return {name: own for name, own in ranges.items() if name in chosen}


def _measure_ranges(glow: FoldedGlow, images: UInt8Array) -> dict[str, Ranges]:
    names = [activation for each in glow.flow_couplings() for activation in _activations(each)]
    model = forward_graph(glow)
    add_outputs(model, names)
    session = _session(model)
    ranges: dict[str, Ranges] = {}
    for inputs in _batches(images, _activations_batch(glow), "measuring activations"):
        values = dict(zip(names, session.run(names, inputs), strict=True))
        for name in names:
            _check_finite(name, values[name])
        for each in glow.flow_couplings():
            own = _ranges([values[name] for name in _activations(each)], each.coupling.network.last)
            ranges[each.name] = ranges[each.name].union(own) if each.name in ranges else own
    return ranges


def _activations(named: NamedCoupling) -> list[str]:
    """The tensors of a coupling that are measured: the network's input, both ReLUs, and its output."""
    name, mask = named.name, named.coupling.mask
    return [mask.passive_name(name), f"{name}.relu1", f"{name}.relu2", f"{name}.conv3"]


def _ranges(activations: Sequence[Float32Array], last: FoldedConv) -> Ranges:
    x, hidden1, hidden2, output = activations
    unbiased = output - per_channel(last.bias)
    return Ranges(
        input=np.abs(x).max(axis=(0, 2, 3)).astype(np.float64),
        hidden=(float(hidden1.max()), float(hidden2.max())),
        output_min=unbiased.min(axis=(0, 2, 3)),
        output_max=unbiased.max(axis=(0, 2, 3)),
    )


def _check_finite(name: str, values: npt.NDArray[Any]) -> None:
    if not np.isfinite(values).all():
        raise ExportError(
            f"{name} is not finite on calibration images: the model diverged; train it with a lower learning rate"
        )


def _loss(glow: FoldedGlow, ranges: Mapping[str, Ranges], images: UInt8Array, fp32: Float64Array) -> float:
    """The mean bits per dimension that int8 adds to `fp32`. A gain is chance, and counts as 0."""
    loss = float((_bits_per_dim(glow, Precision("int8", ranges), images) - fp32).mean())
    return max(loss, 0.0) if np.isfinite(loss) else np.inf


def _bits_per_dim(glow: FoldedGlow, precision: Precision, images: UInt8Array) -> Float64Array:
    session = _session(forward_graph(glow, precision))
    inputs = _batches(images, workload.batch_size(glow))
    nats = [session.run(["log_likelihood"], batch)[0] for batch in inputs]
    return bits_per_dim(np.concatenate(nats).astype(np.float64), glow.dimensions)


def _batches(
    images: UInt8Array, size: int, doing: str | None = None
) -> Iterator[dict[str, npt.NDArray[Any]]]:
    """Inputs of the forward graph, with the noise of the default seed. Draws a progress bar if it says `doing`."""
    slices = workload.batches(len(images), size, doing) if doing else workload.slices(len(images), size)
    for i in slices:
        yield {"image": images[i], "noise": dequantization_noise(DEFAULT_SEED, images[i])}


def _activations_batch(glow: FoldedGlow) -> int:
    """The number of images whose measured activations fit into memory at a time."""
    values = sum(
        each.size.pixels * sum(conv.outputs for conv in each.coupling.network)
        for each in glow.flow_couplings()
    )
    return max(1, min(workload.batch_size(glow), _ACTIVATION_BYTES // (4 * values)))


def _session(model: onnx.ModelProto) -> Any:
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
