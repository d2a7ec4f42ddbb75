"""Which layer of a graph departs from PyTorch: every step's output beside that of the other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import torch
from torch import Tensor

from export.baked import DEQUANTIZATION
from service.engine import Float32Array
from service.repository import FORWARD, REVERSE, Bundle
from training.model import FlowStep, Glow, Level
from training.names import step_name
from training.quantization import to_bins

# Relative errors below this are rounding.
_ROUNDING = 1e-6

Activations = Iterator[tuple[str, Tensor]]


@torch.no_grad()
def diverging_layer_forward(
    model: Glow, bundle: Bundle, images: npt.NDArray[np.uint8], noise: Float32Array
) -> str | None:
    """The layer of forward.onnx at which the error against `model`, in float64, grows most; None: at none."""
    expected = list(_forward(model, torch.from_numpy(images), torch.from_numpy(noise).double()))
    return _diverging(bundle, FORWARD, {"image": images, "noise": noise}, expected)


@torch.no_grad()
def diverging_layer_reverse(model: Glow, bundle: Bundle, latent: Float32Array) -> str | None:
    """The layer of reverse.onnx at which the error against `model`, in float64, grows most; None: at none."""
    expected = list(_reverse(model, torch.from_numpy(latent).double()))
    return _diverging(bundle, REVERSE, {"latent": latent}, expected)


def _forward(model: Glow, images: Tensor, noise: Tensor) -> Activations:
    """What dequantization, every step of flow and every prior yield, in order; at last the whole latent."""
    x, _ = model.dequantize(images, noise)
    if model.dequantization is not None:
        pixels = (x.permute(0, 2, 3, 1) + 0.5) * 2**model.config.n_bits
        yield DEQUANTIZATION, pixels - to_bins(images, model.config.n_bits)
    latents = []
    for i, level in _levels(model):
        x, _ = level.squeeze(x)
        for k, step in _steps(level):
            x, _ = step(x)
            yield step_name(i, k), x
        x, _ = level.prior(x)
        x, latent = x.chunk(2, dim=1) if i < model.config.levels else (x, x)
        latents.append(latent.flatten(1))
        yield f"level{i}.latent", latents[-1]
    yield "latent", torch.cat(latents, dim=1)


def _reverse(model: Glow, latent: Tensor) -> Activations:
    """What undoing every prior and every step of flow yields, in order; at last the pixels."""
    shapes = model.latent_shapes()
    parts = latent.split([int(np.prod(shape)) for shape in shapes], dim=1)
    x = torch.empty(0)
    for i, level in reversed(list(_levels(model))):
        own = parts[i - 1].reshape(-1, *shapes[i - 1])
        top = i == model.config.levels
        x, _ = level.prior.inverse(own if top else torch.cat((x, own), dim=1))
        yield "top.z" if top else f"level{i}.prior.joined", x
        for k, step in reversed(list(_steps(level))):
            x, _ = step.inverse(x)
            yield step_name(i, k), x
        x, _ = level.squeeze.inverse(x)
    yield "pixels", (x.permute(0, 2, 3, 1) + 0.5) * 2**model.config.n_bits


def _levels(model: Glow) -> Iterator[tuple[int, Level]]:
    return enumerate(cast("list[Level]", list(model.levels)), 1)


def _steps(level: Level) -> Iterator[tuple[int, FlowStep]]:
    return enumerate(cast("list[FlowStep]", list(level.steps)), 1)


def _diverging(
    bundle: Bundle, graph: str, inputs: dict[str, Any], expected: list[tuple[str, Tensor]]
) -> str | None:
    model = onnx.load_from_string(bundle.read(graph))
    produced = {output for node in model.graph.node for output in node.output}
    for name, _ in expected:
        if name not in produced:
            return f"{name} of {graph}"
    present = {output.name for output in model.graph.output}
    model.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
        for name, _ in expected
        if name not in present
    )
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [name for name, _ in expected]
    worst, growth, before = None, 1e2, _ROUNDING
    for name, array, (_, exact) in zip(names, session.run(names, inputs), expected, strict=True):
        error = float(np.abs(array - exact.numpy()).max() / (np.abs(exact.numpy()).max() + 1e-30))
        if not np.isfinite(error):  # and so is all that follows: it says nothing of the layers there
            worst = worst or name
            break
        if error > growth * before:
            worst, growth = name, error / before
        before = max(error, before)
    return f"{worst} of {graph}" if worst else None
