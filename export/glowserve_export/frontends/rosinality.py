"""Reads and folds a checkpoint of rosinality/glow-pytorch.

It differs from our flow in two ways. A coupling's logits come before its shifts. And its zero-initialized convolutions
pad with ones: padding with ones equals padding with zeros and a bias that depends on the position. The top level's
prior is such a convolution of a zero input, so that it depends on the position too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from glowserve.image_size import ImageSize
from glowserve_export.convolution import Float64Array, FoldedConv
from glowserve_export.couplings import FoldedNetwork, Shift, SigmoidScale
from glowserve_export.couplings.transforms import shift_and_logit
from glowserve_export.errors import ForeignCheckpointError
from glowserve_export.frontends.arguments import Known, check_image, contradictions, read_arguments
from glowserve_export.frontends.convolutions import reordered, zero_conv
from glowserve_export.frontends.folding import PublicGlow, PublicLevel, PublicStep, fold_public
from glowserve_export.frontends.state_dict import check_recognized, implied, length, match, numbers

_KNOWN = Known(
    implementation="rosinality/glow-pytorch",
    kinds={
        "in_channel": int,
        "n_flow": int,
        "n_block": int,
        "filter_size": int,
        "affine": bool,
        "conv_lu": bool,
        "image_size": int,
        "n_bits": int,
    },
    # Of train.py, whose other flags have the names of arguments or do not matter.
    flags={"img_size": ("image_size", False), "no_lu": ("conv_lu", True)},
    # Hidden channels of a coupling network: no flag of train.py sets them.
    defaults={"filter_size": 512},
)
_BUFFERS = ("initialized", "w_p", "u_mask", "l_mask", "s_sign", "l_eye")


def import_rosinality(found: Mapping[str, Tensor], checkpoint: Path, arguments: Path) -> PublicGlow:
    """Folds a model.

    Args:
        found: the model's state_dict.
        checkpoint: the file of the state_dict, for messages.
        arguments: JSON with image_size and n_bits, and with any other arguments of `Glow` or flags of train.py.

    Raises:
        ExportError: state_dict and arguments do not fit, or the model cannot be inverted.
    """
    check_recognized(found, r"blocks\.(\d+)\.flows\.", _KNOWN.implementation, checkpoint)
    inferred = _inferred(found)
    given = read_arguments(arguments, _KNOWN, inferred)
    size = ImageSize.of(given["image_size"])
    check_image(arguments, size, given["in_channel"], given["n_block"])
    shapes = implied(_shapes(given, found), found)
    weights = match(found, shapes, checkpoint, contradictions(given, inferred))
    for key, value in weights.items():
        if key.endswith(".initialized") and not value:
            raise ForeignCheckpointError(
                f"checkpoint {checkpoint}: {key} is 0, so that this actnorm is not initialized; give the checkpoint "
                "of a model that was trained"
            )
    blocks = [_block(weights, given, i) for i in range(given["n_block"])]
    top = _zero_conv(weights, f"blocks.{given['n_block'] - 1}.prior", _size(given, given["n_block"] - 1))
    glow = fold_public(
        blocks,
        image_size=size,
        channels=given["in_channel"],
        n_bits=given["n_bits"],
        transform=SigmoidScale() if given["affine"] else Shift(),
        top=top.bias,  # the output of the convolution for a zero input
    )
    return PublicGlow(
        glow=glow,
        width=given["filter_size"],
        steps_per_level=given["n_flow"],
        coupling="affine" if given["affine"] else "additive",
        parametrization="lu" if given["conv_lu"] else "plain",
        coupling_actnorm=False,
        parameters=sum(value.size for key, value in weights.items() if not key.endswith(_BUFFERS)),
    )


def _inferred(found: Mapping[str, Tensor]) -> dict[str, Any]:
    """The arguments that keys and shapes tell, those that they do not tell left out."""
    blocks, flows = numbers(found, r"blocks\.(\d+)\."), numbers(found, r"blocks\.0\.flows\.(\d+)\.")
    first = "blocks.0.flows.0"
    channels = length(found, f"{first}.actnorm.loc", 1)
    passive = length(found, f"{first}.coupling.net.0.weight", 1)
    outputs = length(found, f"{first}.coupling.net.4.conv.weight", 0)
    told = {
        "in_channel": channels and channels // 4,
        "n_flow": len(flows) or None,
        "n_block": len(blocks) or None,
        "filter_size": length(found, f"{first}.coupling.net.0.weight", 0),
        "affine": outputs and passive and outputs > passive,
        "conv_lu": f"{first}.invconv.weight" not in found if flows else None,
    }
    return {name: value for name, value in told.items() if value is not None}


def _shapes(given: Mapping[str, Any], found: Mapping[str, Tensor]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Keys and shapes that the arguments imply, in the model's order.

    Versions of the implementation differ in two ways that no argument states: whether an actnorm saves that it was
    initialized, and whether the last block obeys `conv_lu` or always has LU-decomposed convolutions.
    """
    width = given["filter_size"]
    saves_initialized = any(key.endswith(".initialized") for key in found)
    last = given["n_block"] - 1
    plain_last = f"blocks.{last}.flows.0.invconv.weight" in found
    for i in range(given["n_block"]):
        channels = given["in_channel"] * 2 ** (i + 2)
        lu = given["conv_lu"] or (i == last and not plain_last)
        for k in range(given["n_flow"]):
            flow = f"blocks.{i}.flows.{k}"
            yield f"{flow}.actnorm.loc", (1, channels, 1, 1)
            yield f"{flow}.actnorm.scale", (1, channels, 1, 1)
            if saves_initialized:
                yield f"{flow}.actnorm.initialized", ()
            if lu:
                for name in ("w_l", "w_s", "w_u", "w_p", "u_mask", "l_mask", "s_sign", "l_eye"):
                    vector = name in ("w_s", "s_sign")
                    yield f"{flow}.invconv.{name}", (channels,) if vector else (channels, channels)
            else:
                yield f"{flow}.invconv.weight", (channels, channels, 1, 1)
            yield f"{flow}.coupling.net.0.weight", (width, channels // 2, 3, 3)
            yield f"{flow}.coupling.net.0.bias", (width,)
            yield f"{flow}.coupling.net.2.weight", (width, width, 1, 1)
            yield f"{flow}.coupling.net.2.bias", (width,)
            outputs = channels if given["affine"] else channels // 2
            yield from _zero_conv_shapes(f"{flow}.coupling.net.4", outputs, width)
        inputs = channels if i == last else channels // 2
        yield from _zero_conv_shapes(f"blocks.{i}.prior", 2 * inputs, inputs)


def _zero_conv_shapes(name: str, outputs: int, inputs: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.scale", (1, outputs, 1, 1)
    yield f"{name}.conv.weight", (outputs, inputs, 3, 3)
    yield f"{name}.conv.bias", (outputs,)


def _block(weights: Mapping[str, Float64Array], given: Mapping[str, Any], i: int) -> PublicLevel:
    size, top = _size(given, i), i == given["n_block"] - 1
    steps = [
        _flow(weights, f"blocks.{i}.flows.{k}", size, affine=given["affine"]) for k in range(given["n_flow"])
    ]
    return PublicLevel(steps, None if top else _zero_conv(weights, f"blocks.{i}.prior", size))


def _flow(weights: Mapping[str, Float64Array], name: str, size: int, *, affine: bool) -> PublicStep:
    first, second = (
        FoldedConv(weights[f"{name}.coupling.net.{i}.weight"], weights[f"{name}.coupling.net.{i}.bias"])
        for i in (0, 2)
    )
    last = _zero_conv(weights, f"{name}.coupling.net.4", size)
    if affine:
        logits, shifts = np.split(np.arange(len(last.weight)), 2)
        last = shift_and_logit(reordered(last, np.concatenate((shifts, logits))))
    return PublicStep(
        scale=weights[f"{name}.actnorm.scale"].reshape(-1),
        offset=weights[f"{name}.actnorm.loc"].reshape(-1),
        mixing=_mixing(weights, f"{name}.invconv"),
        network=FoldedNetwork(first, second, last),
    )


def _mixing(weights: Mapping[str, Float64Array], name: str) -> Float64Array:
    if f"{name}.weight" in weights:
        return weights[f"{name}.weight"][:, :, 0, 0]
    own = {key: weights[f"{name}.{key}"] for key in ("w_p", "w_l", "l_mask", "l_eye", "w_u", "u_mask")}
    diagonal = np.diag(weights[f"{name}.s_sign"] * np.exp(weights[f"{name}.w_s"]))
    lower, upper = own["w_l"] * own["l_mask"] + own["l_eye"], own["w_u"] * own["u_mask"] + diagonal
    product: Float64Array = own["w_p"] @ lower @ upper
    return product


def _zero_conv(weights: Mapping[str, Float64Array], name: str, size: int) -> FoldedConv:
    """A zero-initialized convolution of a size x size input, its padding with ones folded into the bias."""
    weight, bias = weights[f"{name}.conv.weight"], weights[f"{name}.conv.bias"]
    border = F.pad(torch.zeros(1, 1, size, size, dtype=torch.float64), (1, 1, 1, 1), value=1.0)
    from_border = F.conv2d(border, torch.from_numpy(weight.sum(1, keepdims=True)))[0].numpy()
    return zero_conv(FoldedConv(weight, bias[:, None, None] + from_border), weights[f"{name}.scale"])


def _size(given: Mapping[str, Any], block: int) -> int:
    """H = W of a block after its squeeze."""
    size: int = given["image_size"] >> (block + 1)
    return size
