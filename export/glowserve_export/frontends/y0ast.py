"""Reads and folds a checkpoint of y0ast/Glow-PyTorch.

It differs from our flow in two ways. The outputs of couplings and priors are interleaved: shift, logit, shift, ...;
mean, log-scale, mean, ... And a fixed permutation may take the place of the 1x1 convolution.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from glowserve_export.errors import ArgumentsError
from glowserve_export.folded import Float64Array, FoldedConv
from glowserve_export.frontends.arguments import Known, check_image, contradictions, read_arguments
from glowserve_export.frontends.convolutions import reordered, scaled, shift_and_logit, zero_conv
from glowserve_export.frontends.folding import PublicGlow, PublicLevel, PublicStep, fold_public
from glowserve_export.frontends.state_dict import implied, length, match, numbers

_KNOWN = Known(
    implementation="y0ast/Glow-PyTorch",
    kinds={
        "image_shape": list,
        "hidden_channels": int,
        "K": int,
        "L": int,
        "actnorm_scale": float,
        "flow_permutation": str,
        "flow_coupling": str,
        "LU_decomposed": bool,
        "y_classes": int,
        "learn_top": bool,
        "y_condition": bool,
        "n_bits": int,
    },
    # Of the initialization and of class-conditional models.
    optional=frozenset({"actnorm_scale", "y_classes"}),
    # A constant of datasets.py.
    defaults={"n_bits": 8},
)
_BUFFERS = ("invconv.p", "invconv.sign_s", "prior_h")


def import_y0ast(found: Mapping[str, Tensor], checkpoint: Path, arguments: Path) -> PublicGlow:
    """Folds a model.

    Args:
        found: the model's state_dict.
        checkpoint: the file of the state_dict, for messages.
        arguments: JSON with any arguments of `Glow`, such as the hparams.json of train.py.

    Raises:
        ExportError: state_dict and arguments do not fit, or the model is not supported or cannot be inverted.
    """
    inferred = _inferred(found)
    given = read_arguments(arguments, _KNOWN, inferred)
    _check(given, arguments)
    weights = match(found, implied(_shapes(given), found), checkpoint, contradictions(given, inferred))
    height, _, channels = given["image_shape"]
    glow = fold_public(
        [_level(weights, given, i) for i in range(given["L"])],
        image_size=height,
        channels=channels,
        n_bits=given["n_bits"],
        affine=given["flow_coupling"] == "affine",
        top=_top(weights, learned=given["learn_top"]),
    )
    return PublicGlow(
        glow=glow,
        width=given["hidden_channels"],
        steps_per_level=given["K"],
        coupling=given["flow_coupling"],
        parametrization=_parametrization(given),
        coupling_actnorm=True,
        parameters=sum(value.size for key, value in weights.items() if not key.endswith(_BUFFERS)),
    )


def _inferred(found: Mapping[str, Tensor]) -> dict[str, Any]:
    """The arguments that keys and shapes tell, those that they do not tell left out."""
    steps = numbers(found, r"flow\.layers\.(\d+)\.actnorm\.bias$")
    splits = numbers(found, r"flow\.layers\.(\d+)\.conv\.conv\.weight$")
    first, levels = "flow.layers.1", len(splits) + 1
    channels, size = length(found, f"{first}.actnorm.bias", 1), length(found, "prior_h", 2)
    passive = length(found, f"{first}.block.0.conv.weight", 1)
    outputs = length(found, f"{first}.block.4.conv.weight", 0)
    if not (steps and channels and size):
        return {}
    told = {
        "image_shape": [size << levels, size << levels, channels // 4] if levels <= len(steps) else None,
        "hidden_channels": length(found, f"{first}.block.0.conv.weight", 0),
        "K": len(steps) // levels or None,
        "L": levels,
        # Neither "reverse" nor "shuffle" has weights.
        "flow_permutation": "invconv" if any(".invconv." in key for key in found) else None,
        "flow_coupling": passive and outputs and ("affine" if outputs > passive else "additive"),
        "LU_decomposed": any(key.endswith(".invconv.p") for key in found),
        "learn_top": any(key.startswith("learn_top_fn.") for key in found),
        "y_condition": any(key.startswith("project_ycond.") for key in found),
    }
    return {name: value for name, value in told.items() if value is not None}


def _check(given: Mapping[str, Any], path: Path) -> None:
    height, width, channels = given["image_shape"]
    if height != width:
        raise ArgumentsError(
            f"{path}: image_shape is {given['image_shape']}; only square images are supported"
        )
    check_image(path, height, channels, given["L"])
    if given["y_condition"]:
        raise ArgumentsError(
            f"{path}: y_condition is true, and class-conditional models are not supported; train one with y_condition "
            "false"
        )
    if given["flow_coupling"] not in ("affine", "additive"):
        raise ArgumentsError(
            f"{path}: flow_coupling is {given['flow_coupling']!r}; it must be affine or additive"
        )
    if given["flow_permutation"] == "shuffle":
        raise ArgumentsError(
            f"{path}: flow_permutation is 'shuffle', and a checkpoint does not contain its random permutations; "
            "train a model with 'invconv' or 'reverse'"
        )
    if given["flow_permutation"] not in ("invconv", "reverse"):
        raise ArgumentsError(
            f"{path}: flow_permutation is {given['flow_permutation']!r}; it must be invconv or reverse"
        )


def _parametrization(given: Mapping[str, Any]) -> str:
    if given["flow_permutation"] == "reverse":
        return "reverse"
    return "lu" if given["LU_decomposed"] else "plain"


def _shapes(given: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Keys and shapes that the arguments imply, in the model's order."""
    height, _, image_channels = given["image_shape"]
    levels, width = given["L"], given["hidden_channels"]
    top, size = image_channels * 2 ** (levels + 1), height >> levels
    yield "prior_h", (1, 2 * top, size, size)
    for i in range(levels):
        channels = image_channels * 2 ** (i + 2)
        half = channels // 2
        for k in range(given["K"]):
            step = _step_key(given, i, k)
            yield from _actnorm_shapes(f"{step}.actnorm", channels)
            yield from _mixing_shapes(f"{step}.invconv", channels, _parametrization(given))
            yield f"{step}.block.0.conv.weight", (width, half, 3, 3)
            yield from _actnorm_shapes(f"{step}.block.0.actnorm", width)
            yield f"{step}.block.2.conv.weight", (width, width, 1, 1)
            yield from _actnorm_shapes(f"{step}.block.2.actnorm", width)
            outputs = channels if given["flow_coupling"] == "affine" else half
            yield from _zero_conv_shapes(f"{step}.block.4", outputs, width)
        if i < levels - 1:
            yield from _zero_conv_shapes(_split_key(given, i), channels, half)
    if given["learn_top"]:
        yield from _zero_conv_shapes("learn_top_fn", 2 * top, 2 * top)


def _actnorm_shapes(name: str, channels: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.bias", (1, channels, 1, 1)
    yield f"{name}.logs", (1, channels, 1, 1)


def _mixing_shapes(name: str, channels: int, parametrization: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    if parametrization == "plain":
        yield f"{name}.weight", (channels, channels)
    if parametrization == "lu":
        yield f"{name}.lower", (channels, channels)
        yield f"{name}.log_s", (channels,)
        yield f"{name}.upper", (channels, channels)
        yield f"{name}.p", (channels, channels)
        yield f"{name}.sign_s", (channels,)


def _zero_conv_shapes(name: str, outputs: int, inputs: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.logs", (outputs, 1, 1)
    yield f"{name}.conv.weight", (outputs, inputs, 3, 3)
    yield f"{name}.conv.bias", (outputs,)


def _step_key(given: Mapping[str, Any], level: int, step: int) -> str:
    """The key of a step. All levels are in one list of layers, each level as squeeze, steps, split."""
    return f"flow.layers.{level * (given['K'] + 2) + 1 + step}"


def _split_key(given: Mapping[str, Any], level: int) -> str:
    return f"{_step_key(given, level, given['K'])}.conv"


def _level(weights: Mapping[str, Float64Array], given: Mapping[str, Any], i: int) -> PublicLevel:
    steps = [
        _step(weights, _step_key(given, i, k), affine=given["flow_coupling"] == "affine")
        for k in range(given["K"])
    ]
    if i == given["L"] - 1:
        return PublicLevel(steps, None)
    return PublicLevel(steps, _deinterleaved(_zero_conv(weights, _split_key(given, i))))


def _step(weights: Mapping[str, Float64Array], name: str, *, affine: bool) -> PublicStep:
    last = _zero_conv(weights, f"{name}.block.4")
    if affine:
        last = shift_and_logit(_deinterleaved(last))
    return PublicStep(
        scale=np.exp(weights[f"{name}.actnorm.logs"]).reshape(-1),
        offset=weights[f"{name}.actnorm.bias"].reshape(-1),
        mixing=_mixing(weights, name),
        network=(_hidden_conv(weights, f"{name}.block.0"), _hidden_conv(weights, f"{name}.block.2"), last),
    )


def _mixing(weights: Mapping[str, Float64Array], step: str) -> Float64Array:
    name = f"{step}.invconv"
    if f"{name}.weight" in weights:
        return weights[f"{name}.weight"]
    if f"{name}.p" not in weights:
        return np.eye(weights[f"{step}.actnorm.bias"].size)[::-1]
    diagonal = np.diag(weights[f"{name}.sign_s"] * np.exp(weights[f"{name}.log_s"]))
    lower = np.tril(weights[f"{name}.lower"], -1) + np.eye(len(diagonal))
    product: Float64Array = weights[f"{name}.p"] @ lower @ (np.triu(weights[f"{name}.upper"], 1) + diagonal)
    return product


def _hidden_conv(weights: Mapping[str, Float64Array], name: str) -> FoldedConv:
    """A hidden convolution with its actnorm folded in."""
    conv = FoldedConv(weights[f"{name}.conv.weight"], weights[f"{name}.actnorm.bias"].reshape(-1))
    return scaled(conv, np.exp(weights[f"{name}.actnorm.logs"]).reshape(-1))


def _zero_conv(weights: Mapping[str, Float64Array], name: str) -> FoldedConv:
    return zero_conv(
        FoldedConv(weights[f"{name}.conv.weight"], weights[f"{name}.conv.bias"]), weights[f"{name}.logs"]
    )


def _deinterleaved(conv: FoldedConv) -> FoldedConv:
    """Reorders interleaved outputs: the even ones, then the odd ones."""
    outputs = np.arange(len(conv.weight))
    return reordered(conv, np.concatenate((outputs[0::2], outputs[1::2])))


def _top(weights: Mapping[str, Float64Array], *, learned: bool) -> Float64Array:
    """Mean and log-scale of the top level's prior, [2C, H, W]."""
    prior = torch.from_numpy(weights["prior_h"])
    if learned:
        conv = _zero_conv(weights, "learn_top_fn")
        prior = F.conv2d(prior, torch.from_numpy(conv.weight), torch.from_numpy(conv.bias), padding=1)
    top: Float64Array = prior[0].numpy()
    return top
