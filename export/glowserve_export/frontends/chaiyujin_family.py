"""Reads and folds checkpoints of chaiyujin/glow-pytorch and of y0ast/Glow-PyTorch, which descends from it.

They differ in the names of weights and in how they scale images. From our flow both differ in two ways. The outputs of
couplings and priors are interleaved: shift, logit, shift, ...; mean, log-scale, mean, ... And a fixed permutation may
take the place of the 1x1 convolution.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from glowserve_training.layers.networks import LOG_SCALE_FACTOR
from torch import Tensor

from glowserve.image_size import ImageSize
from glowserve.runtime.manifest import MOST_CLASSES
from glowserve_export.convolution import Float64Array, FoldedConv
from glowserve_export.couplings import FoldedNetwork, Shift, SigmoidScale
from glowserve_export.couplings.transforms import shift_and_logit
from glowserve_export.errors import ArgumentsError
from glowserve_export.folded import FoldedGlow
from glowserve_export.frontends.arguments import Known, check_image, contradictions, read_arguments
from glowserve_export.frontends.class_priors import ClassPrior, class_names, fold_class_priors
from glowserve_export.frontends.convolutions import deinterleaved, zero_conv
from glowserve_export.frontends.folding import Pixels, PublicGlow, PublicLevel, PublicStep, fold_public
from glowserve_export.frontends.matrices import lu_product
from glowserve_export.frontends.state_dict import check_recognized, implied, length, match, numbers

_BUFFERS = ("invconv.p", "invconv.sign_s", "prior_h")
_KINDS = {
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
}


@dataclass(frozen=True, kw_only=True)
class Implementation:
    """What differs between the two implementations."""

    repository: str
    """Its GitHub repository."""

    section: str | None = None
    """The object of the JSON file that has the arguments of the model."""

    pixels: Pixels
    """How it scales images."""

    quantizes: bool
    """Whether it can train on fewer than 8 bits of each grey value."""

    block: str
    """The attribute of a step that is its coupling network."""

    conv: str
    """What comes between the name of a convolution and the name of its weight."""

    lower: str
    """The lower triangle of an LU-decomposed convolution."""

    upper: str
    """The upper triangle."""

    top: str
    """The convolution that learns the top level's prior."""

    one_class: bool
    """Whether y_condition gives an image one class, and not several at once."""

    def known(self) -> Known:
        """Its arguments."""
        return Known(
            implementation=self.repository,
            kinds=_KINDS,
            # Of the initialization and of class-conditional models.
            optional=frozenset({"actnorm_scale", "y_classes"}),
            # A constant of the code that reads the images.
            defaults={"n_bits": 8},
            section=self.section,
        )


def import_model(
    implementation: Implementation, found: Mapping[str, Tensor], checkpoint: Path, arguments: Path
) -> PublicGlow:
    """Folds a model.

    Args:
        implementation: that trained it.
        found: the model's state_dict.
        checkpoint: the file of the state_dict, for messages.
        arguments: JSON with any arguments of `Glow`.

    Raises:
        ExportError: state_dict and arguments do not fit, or the model is not supported or cannot be inverted.
    """
    names = implementation
    check_recognized(found, r"flow\.layers\.(\d+)\.", names.repository, checkpoint)
    inferred = _inferred(found, names)
    given = read_arguments(arguments, names.known(), inferred)
    _check(given, arguments, names)
    if given["n_bits"] < 8 and not names.quantizes:
        raise ArgumentsError(
            f"{arguments}: n_bits is {given['n_bits']}, and {names.repository} trains on 8 bits; leave it out"
        )
    shapes = implied(_shapes(given, found, names), found)
    weights = match(found, shapes, checkpoint, contradictions(given, inferred))
    height, width, channels = given["image_shape"]
    affine = given["flow_coupling"] == "affine"
    glow = fold_public(
        [_level(weights, given, names, i) for i in range(given["L"])],
        image_size=ImageSize(height, width),
        channels=channels,
        n_bits=given["n_bits"],
        transform=SigmoidScale() if affine else Shift(),
        top=_top(weights, names, learned=given["learn_top"]),
        pixels=names.pixels,
    )
    classes = given["y_classes"] if given["y_condition"] else 0
    if classes:
        own = [*[None] * (given["L"] - 1), _class_prior(weights, glow)]
        glow = replace(glow, classes=fold_class_priors(classes, own, glow.latent_shapes()))
    return PublicGlow(
        glow=glow,
        width=given["hidden_channels"],
        steps_per_level=given["K"],
        coupling=given["flow_coupling"],
        parametrization=_parametrization(given),
        coupling_actnorm=True,
        parameters=sum(value.size for key, value in weights.items() if not key.endswith(_BUFFERS)),
        classes=class_names(classes),
    )


def _inferred(found: Mapping[str, Tensor], names: Implementation) -> dict[str, Any]:
    """The arguments that keys and shapes tell, those that they do not tell left out."""
    steps = numbers(found, r"flow\.layers\.(\d+)\.actnorm\.bias$")
    splits = numbers(found, rf"flow\.layers\.(\d+)\.conv{re.escape(names.conv)}\.weight$")
    first, levels = "flow.layers.1", len(splits) + 1
    channels = length(found, f"{first}.actnorm.bias", 1)
    height, width = length(found, "prior_h", 2), length(found, "prior_h", 3)
    passive = length(found, f"{first}.{names.block}.0{names.conv}.weight", 1)
    outputs = length(found, f"{first}.{names.block}.4{names.conv}.weight", 0)
    if not (steps and channels and height and width):
        return {}
    told = {
        "image_shape": [height << levels, width << levels, channels // 4] if levels <= len(steps) else None,
        "hidden_channels": length(found, f"{first}.{names.block}.0{names.conv}.weight", 0),
        "K": len(steps) // levels or None,
        "L": levels,
        # Neither "reverse" nor "shuffle" has weights.
        "flow_permutation": "invconv" if any(".invconv." in key for key in found) else None,
        "flow_coupling": passive and outputs and ("affine" if outputs > passive else "additive"),
        "LU_decomposed": any(key.endswith(".invconv.log_s") for key in found),
        "learn_top": any(key.startswith(f"{names.top}.") for key in found),
        "y_condition": any(key.startswith("project_ycond.") for key in found),
    }
    return {name: value for name, value in told.items() if value is not None}


def _check(given: Mapping[str, Any], path: Path, names: Implementation) -> None:
    height, width, channels = given["image_shape"]
    check_image(path, ImageSize(height, width), channels, given["L"])
    if given["y_condition"] and not names.one_class:
        raise ArgumentsError(
            f"{path}: y_condition is true, and class-conditional models of {names.repository} are not supported; train "
            "one with y_condition false"
        )
    if given["y_condition"] and not 2 <= given.get("y_classes", 0) <= MOST_CLASSES:
        raise ArgumentsError(
            f"{path}: y_classes is {given.get('y_classes')}, and y_condition is true; it must be 2 to {MOST_CLASSES}"
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


def _shapes(
    given: Mapping[str, Any], found: Mapping[str, Tensor], names: Implementation
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Keys and shapes that the arguments imply, in the model's order."""
    height, width, image_channels = given["image_shape"]
    levels, hidden = given["L"], given["hidden_channels"]
    top = image_channels * 2 ** (levels + 1)
    # One row, or a row for each image of a training batch.
    yield "prior_h", (length(found, "prior_h", 0) or 1, 2 * top, height >> levels, width >> levels)
    for i in range(levels):
        channels = image_channels * 2 ** (i + 2)
        half = channels // 2
        for k in range(given["K"]):
            step = _step_key(given, i, k)
            yield from _actnorm_shapes(f"{step}.actnorm", channels)
            yield from _mixing_shapes(f"{step}.invconv", channels, _parametrization(given), names)
            block = f"{step}.{names.block}"
            yield f"{block}.0{names.conv}.weight", (hidden, half, 3, 3)
            yield from _actnorm_shapes(f"{block}.0.actnorm", hidden)
            yield f"{block}.2{names.conv}.weight", (hidden, hidden, 1, 1)
            yield from _actnorm_shapes(f"{block}.2.actnorm", hidden)
            outputs = channels if given["flow_coupling"] == "affine" else half
            yield from _zero_conv_shapes(f"{block}.4", outputs, hidden, names)
        if i < levels - 1:
            yield from _zero_conv_shapes(_split_key(given, i), channels, half, names)
    if given["learn_top"]:
        yield from _zero_conv_shapes(names.top, 2 * top, 2 * top, names)
    if given["y_condition"]:
        yield from _zero_linear_shapes("project_ycond", 2 * top, given["y_classes"])
        yield from _zero_linear_shapes("project_class", given["y_classes"], top)


def _actnorm_shapes(name: str, channels: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.bias", (1, channels, 1, 1)
    yield f"{name}.logs", (1, channels, 1, 1)


def _mixing_shapes(
    name: str, channels: int, parametrization: str, names: Implementation
) -> Iterator[tuple[str, tuple[int, ...]]]:
    if parametrization == "plain":
        yield f"{name}.weight", (channels, channels)
    if parametrization == "lu":
        yield f"{name}.{names.lower}", (channels, channels)
        yield f"{name}.log_s", (channels,)
        yield f"{name}.{names.upper}", (channels, channels)
        yield f"{name}.p", (channels, channels)
        yield f"{name}.sign_s", (channels,)


def _zero_conv_shapes(
    name: str, outputs: int, inputs: int, names: Implementation
) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.logs", (outputs, 1, 1)
    yield f"{name}{names.conv}.weight", (outputs, inputs, 3, 3)
    yield f"{name}{names.conv}.bias", (outputs,)


def _zero_linear_shapes(name: str, outputs: int, inputs: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.logs", (outputs,)
    yield f"{name}.linear.weight", (outputs, inputs)
    yield f"{name}.linear.bias", (outputs,)


def _step_key(given: Mapping[str, Any], level: int, step: int) -> str:
    """The key of a step. All levels are in one list of layers, each level as squeeze, steps, split."""
    return f"flow.layers.{level * (given['K'] + 2) + 1 + step}"


def _split_key(given: Mapping[str, Any], level: int) -> str:
    return f"{_step_key(given, level, given['K'])}.conv"


def _level(
    weights: Mapping[str, Float64Array], given: Mapping[str, Any], names: Implementation, i: int
) -> PublicLevel:
    steps = [
        _step(weights, _step_key(given, i, k), names, affine=given["flow_coupling"] == "affine")
        for k in range(given["K"])
    ]
    if i == given["L"] - 1:
        return PublicLevel(steps, None)
    return PublicLevel(steps, deinterleaved(_zero_conv(weights, _split_key(given, i), names)))


def _step(
    weights: Mapping[str, Float64Array], name: str, names: Implementation, *, affine: bool
) -> PublicStep:
    block = f"{name}.{names.block}"
    last = _zero_conv(weights, f"{block}.4", names)
    if affine:
        last = shift_and_logit(deinterleaved(last))
    return PublicStep(
        scale=np.exp(weights[f"{name}.actnorm.logs"]).reshape(-1),
        offset=weights[f"{name}.actnorm.bias"].reshape(-1),
        mixing=_mixing(weights, name, names),
        network=FoldedNetwork(
            _hidden_conv(weights, f"{block}.0", names),
            _hidden_conv(weights, f"{block}.2", names),
            last,
        ),
    )


def _mixing(weights: Mapping[str, Float64Array], step: str, names: Implementation) -> Float64Array:
    name = f"{step}.invconv"
    if f"{name}.weight" in weights:
        return weights[f"{name}.weight"]
    if f"{name}.p" not in weights:
        return np.eye(weights[f"{step}.actnorm.bias"].size)[::-1]
    return lu_product(
        permutation=weights[f"{name}.p"],
        lower=weights[f"{name}.{names.lower}"],
        upper=weights[f"{name}.{names.upper}"],
        sign=weights[f"{name}.sign_s"],
        log_scale=weights[f"{name}.log_s"],
    )


def _hidden_conv(weights: Mapping[str, Float64Array], name: str, names: Implementation) -> FoldedConv:
    """A hidden convolution with its actnorm folded in."""
    conv = FoldedConv(weights[f"{name}{names.conv}.weight"], weights[f"{name}.actnorm.bias"].reshape(-1))
    return conv.scaled(np.exp(weights[f"{name}.actnorm.logs"]).reshape(-1))


def _zero_conv(weights: Mapping[str, Float64Array], name: str, names: Implementation) -> FoldedConv:
    conv = FoldedConv(weights[f"{name}{names.conv}.weight"], weights[f"{name}{names.conv}.bias"])
    return zero_conv(conv, weights[f"{name}.logs"])


def _top(weights: Mapping[str, Float64Array], names: Implementation, *, learned: bool) -> Float64Array:
    """Mean and log-scale of the top level's prior, [2C, H, W]."""
    prior = torch.from_numpy(weights["prior_h"])
    if learned:
        conv = _zero_conv(weights, names.top, names)
        prior = F.conv2d(prior, torch.from_numpy(conv.weight), torch.from_numpy(conv.bias), padding=1)
    top: Float64Array = prior[0].numpy()
    return top


def _class_prior(weights: Mapping[str, Float64Array], glow: FoldedGlow) -> ClassPrior:
    """Of the top level: a linear layer of the class adds to mean and log-scale. "project_class" makes no difference."""
    linear = weights["project_ycond.linear.weight"].T + weights["project_ycond.linear.bias"]
    added = (linear * np.exp(LOG_SCALE_FACTOR * weights["project_ycond.logs"]))[:, :, None, None]
    mean, log_scale = np.split(added, 2, axis=1)
    common = glow.top_mean, glow.top_log_scale
    return ClassPrior(common[0] + mean, common[1] + log_scale, common)
