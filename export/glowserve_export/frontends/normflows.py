"""Reads and folds checkpoints of normflows (VincentStimper/normalizing-flows): a MultiscaleFlow of GlowBlocks.

It is written for sampling: q0[0] and flows[0] are of the top level, and encoding runs the blocks of a level from the
last to the first. It differs from our flow in four ways. The coupling subtracts its shift, may make its scale in other
ways, and may transform the first half of the channels. Shifts and logits are interleaved. The priors depend on the
position only, if at all. The model sees (bin + noise) / bins, which is not centred.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from glowserve.image_size import ImageSize
from glowserve_export.convolution import Float64Array, FoldedConv
from glowserve_export.couplings import (
    ExpScale,
    FoldedNetwork,
    Halves,
    InverseSigmoidScale,
    Shift,
    SigmoidScale,
    Transform,
)
from glowserve_export.couplings.transforms import shift_and_logit
from glowserve_export.errors import ArgumentsError, ForeignCheckpointError
from glowserve_export.frontends.arguments import Known, check_image, contradictions, read_arguments
from glowserve_export.frontends.class_priors import ClassPrior, class_names, fold_class_priors
from glowserve_export.frontends.convolutions import deinterleaved
from glowserve_export.frontends.folding import (
    CENTRED,
    UNIT,
    Pixels,
    PublicGlow,
    PublicLevel,
    PublicStep,
    fold_public,
)
from glowserve_export.frontends.matrices import lu_product
from glowserve_export.frontends.normflows_bases import (
    base_kinds,
    base_shapes,
    class_count,
    class_prior,
    mean_and_log_scale,
)
from glowserve_export.frontends.state_dict import check_recognized, implied, length, match, numbers

_KNOWN = Known(
    implementation="VincentStimper/normalizing-flows",
    kinds={
        "input_shape": list,
        "L": int,
        "K": int,
        "hidden_channels": int,
        "scale": bool,
        "scale_map": str,
        "split_mode": str,
        "leaky": float,
        "use_lu": bool,
        "net_actnorm": bool,
        "logscale_factor": float,
        "base": str,
        "base_trainable": bool,
        "transform": str,
        "n_bits": int,
    },
    # An additive coupling has no scale; levels can have different bases.
    optional=frozenset({"scale_map", "base", "transform"}),
    # Of the constructors of GlowBlock and GlowBase.
    defaults={"split_mode": "channel", "leaky": 0.0, "logscale_factor": 3.0, "base_trainable": True},
    nullable=frozenset({"scale_map", "base", "logscale_factor", "transform"}),
)
# "sigmoid" divides when it decodes, as ours does; the others multiply.
_SCALE_MAPS: dict[str, Transform] = {
    "sigmoid": SigmoidScale(),
    "sigmoid_inv": InverseSigmoidScale(),
    "exp": ExpScale(),
}
# By the transform: Shift subtracts one half.
_PIXELS: dict[str | None, Pixels] = {None: UNIT, "Shift": CENTRED}
_BUFFERS = (".P", ".sign_S", ".eye", ".data_dep_init_done")
_INITIALIZED = "data_dep_init_done"
# The network of a coupling, in a block.
_NETWORK = "0.flows.1.param_map.net"


def import_normflows(found: Mapping[str, Tensor], checkpoint: Path, arguments: Path) -> PublicGlow:
    """Folds a model.

    Args:
        found: the model's state_dict.
        checkpoint: the file of the state_dict, for messages.
        arguments: JSON with n_bits, scale_map, input_shape if no prior has it, and any other arguments of GlowBlock,
            MultiscaleFlow and GlowBase.

    Raises:
        ExportError: state_dict and arguments do not fit, or the model is not supported or cannot be inverted.
    """
    check_recognized(found, r"flows\.(\d+)\.\d+\.", _KNOWN.implementation, checkpoint)
    bases = base_kinds(found, checkpoint)
    inferred = _inferred(found, bases)
    given = read_arguments(arguments, _KNOWN, inferred)
    _check(given, arguments)
    weights = match(
        found, implied(_shapes(given, found, bases), found), checkpoint, contradictions(given, inferred)
    )
    for key, value in weights.items():
        if key.endswith(_INITIALIZED) and not value:
            raise ForeignCheckpointError(
                f"checkpoint {checkpoint}: {key} is 0, so that this actnorm is not initialized; give the checkpoint "
                "of a model that was trained"
            )
    channels, height, width = given["input_shape"]
    classes = class_count(found, bases, checkpoint)
    priors = [_class_prior(weights, given, bases, i) for i in range(given["L"])]
    levels = [_level(weights, given, priors, i) for i in range(given["L"])]
    glow = fold_public(
        levels,
        image_size=ImageSize(height, width),
        channels=channels,
        n_bits=given["n_bits"],
        transform=_SCALE_MAPS[given["scale_map"]] if given["scale"] else Shift(),
        top=_prior(weights, given, priors, given["L"] - 1),
        pixels=_PIXELS[given.get("transform")],
    )
    if classes:
        glow = replace(glow, classes=fold_class_priors(classes, priors, glow.latent_shapes()))
    buffers = _BUFFERS if given["base_trainable"] else (*_BUFFERS, ".loc", ".log_scale")
    return PublicGlow(
        glow=glow,
        width=given["hidden_channels"],
        steps_per_level=given["K"],
        coupling="affine" if given["scale"] else "additive",
        parametrization="lu" if given["use_lu"] else "plain",
        coupling_actnorm=given["net_actnorm"],
        parameters=sum(value.size for key, value in weights.items() if not key.endswith(buffers)),
        classes=class_names(classes),
    )


def _inferred(found: Mapping[str, Tensor], bases: Mapping[str, str]) -> dict[str, Any]:
    """The arguments that keys and shapes tell, those that they do not tell left out."""
    levels, blocks = numbers(found, r"flows\.(\d+)\.\d+\."), numbers(found, r"flows\.0\.(\d+)\.")
    if not blocks:
        return {}
    top = len(levels) - 1
    step = f"flows.{top}.0.flows"
    network = f"{step}.{_NETWORK}"
    channels, passive = length(found, f"{step}.2.s", 1), length(found, f"{network}.0.weight", 1)
    outputs = length(found, f"{network}.4.weight", 0) or length(found, f"{network}.6.weight", 0)
    sizes = [length(found, f"q0.{top}.loc", axis) for axis in (2, 3)]
    told = {
        # Other bases have no height and width.
        "input_shape": [channels // 4, *(2 * (size or 1) for size in sizes)]
        if channels and bases[f"q0.{top}"] == "DiagGaussian"
        else None,
        "L": len(levels),
        "K": len(blocks),
        "hidden_channels": length(found, f"{network}.0.weight", 0),
        "scale": outputs and passive and outputs > passive,
        # A checkerboard conditions on as many channels as there are.
        "split_mode": "checkerboard" if passive and passive == channels else None,
        "use_lu": f"{step}.1.W" not in found,
        "net_actnorm": any(key.startswith(f"{network}.1.") for key in found),
        "base": bases["q0.0"] if len(set(bases.values())) == 1 else None,
    }
    return {name: value for name, value in told.items() if value is not None}


def _check(given: Mapping[str, Any], path: Path) -> None:
    channels, height, width = given["input_shape"]
    check_image(path, ImageSize(height, width), channels, given["L"])
    if "checkerboard" in given["split_mode"]:
        raise ArgumentsError(
            f"{path}: split_mode is {given['split_mode']!r}, and couplings of a checkerboard are not supported; train "
            "a model with split_mode 'channel'"
        )
    allowed = {"split_mode": ["channel", "channel_inv"], "transform": ["Shift"]}
    if given["scale"]:
        if "scale_map" not in given:
            raise ArgumentsError(
                f"{path}: argument 'scale_map' is missing; add the value that the model was built with, "
                f"{' or '.join(_SCALE_MAPS)}: GlowBlock's default is sigmoid"
            )
        allowed["scale_map"] = list(_SCALE_MAPS)
    for name, values in allowed.items():
        if name in given and given[name] not in values:
            raise ArgumentsError(f"{path}: {name} is {given[name]!r}; it must be {' or '.join(values)}")
    if given["leaky"] != 0:
        raise ArgumentsError(
            f"{path}: leaky is {given['leaky']}, and only networks with ReLU are supported; train a model with leaky 0"
        )


def _shapes(
    given: Mapping[str, Any], found: Mapping[str, Tensor], bases: Mapping[str, str]
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Keys and shapes that the arguments imply, in the model's order."""
    saves_initialized = any(key.endswith(_INITIALIZED) for key in found)
    for i in reversed(range(given["L"])):
        base = _base_key(given, i)
        yield from base_shapes(
            given.get("base") or bases.get(base, "DiagGaussian"), found, base, _latents(given, i)
        )
    for i in reversed(range(given["L"])):
        channels = given["input_shape"][0] * 2 ** (i + 2)
        for k in range(given["K"]):
            step = _step_key(given, i, k)
            yield from _network_shapes(
                f"{step}.{_NETWORK}", given, channels, saves_initialized=saves_initialized
            )
            yield from _mixing_shapes(f"{step}.1", channels, lu=given["use_lu"])
            yield from _actnorm_shapes(f"{step}.2", channels, saves_initialized=saves_initialized)


def _network_shapes(
    name: str, given: Mapping[str, Any], channels: int, *, saves_initialized: bool
) -> Iterator[tuple[str, tuple[int, ...]]]:
    width, half = given["hidden_channels"], channels // 2
    first, second, last = _convolutions(given)
    for conv, shape in ((first, (width, half, 3, 3)), (second, (width, width, 1, 1))):
        yield f"{name}.{conv}.weight", shape
        if given["net_actnorm"]:
            yield from _actnorm_shapes(
                f"{name}.{conv + 1}.actNorm", width, saves_initialized=saves_initialized
            )
        else:
            yield f"{name}.{conv}.bias", (width,)
    outputs = channels if given["scale"] else half
    yield f"{name}.{last}.weight", (outputs, width, 3, 3)
    yield f"{name}.{last}.bias", (outputs,)


def _mixing_shapes(name: str, channels: int, *, lu: bool) -> Iterator[tuple[str, tuple[int, ...]]]:
    for key in ("L", "log_S", "U", "P", "sign_S", "eye") if lu else ("W",):
        yield f"{name}.{key}", (channels,) if key in ("log_S", "sign_S") else (channels, channels)


def _actnorm_shapes(
    name: str, channels: int, *, saves_initialized: bool
) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.s", (1, channels, 1, 1)
    yield f"{name}.t", (1, channels, 1, 1)
    if saves_initialized:
        yield f"{name}.{_INITIALIZED}", ()


def _step_key(given: Mapping[str, Any], level: int, block: int) -> str:
    """The key of a block. Level 0 is nearest to the pixels, and last in the checkpoint."""
    return f"flows.{given['L'] - 1 - level}.{block}.flows"


def _base_key(given: Mapping[str, Any], level: int) -> str:
    return f"q0.{given['L'] - 1 - level}"


def _latents(given: Mapping[str, Any], level: int) -> tuple[int, int, int]:
    """[C, H, W] of a level's latents."""
    channels, height, width = given["input_shape"]
    top = level == given["L"] - 1
    return channels * 2 ** (level + (2 if top else 1)), height >> (level + 1), width >> (level + 1)


def _convolutions(given: Mapping[str, Any]) -> tuple[int, int, int]:
    """The places of the convolutions among the layers of a network."""
    return (0, 3, 6) if given["net_actnorm"] else (0, 2, 4)


def _class_prior(
    weights: Mapping[str, Float64Array], given: Mapping[str, Any], bases: Mapping[str, str], i: int
) -> ClassPrior | None:
    """Of a level; None if it is the same for all classes."""
    name = _base_key(given, i)
    return class_prior(given.get("base") or bases[name], weights, name, given["logscale_factor"])


def _level(
    weights: Mapping[str, Float64Array], given: Mapping[str, Any], priors: Sequence[ClassPrior | None], i: int
) -> PublicLevel:
    steps = [_step(weights, given, _step_key(given, i, k)) for k in reversed(range(given["K"]))]
    if i == given["L"] - 1:
        return PublicLevel(steps, None)
    prior = _prior(weights, given, priors, i)
    # A convolution whose output is its bias.
    return PublicLevel(steps, FoldedConv(np.zeros((len(prior), len(prior) // 2, 1, 1)), prior))


def _prior(
    weights: Mapping[str, Float64Array], given: Mapping[str, Any], priors: Sequence[ClassPrior | None], i: int
) -> Float64Array:
    """Mean and log-scale of a level's latents, concatenated, [2C, H, W]; or [2C], if the same at each position.

    Of a class-conditional prior they are those that all classes have in common.
    """
    channels, height, width = _latents(given, i)
    own = priors[i]
    both = (
        mean_and_log_scale(weights, _base_key(given, i), given["logscale_factor"])
        if own is None
        else own.common
    )
    if {values.shape[1:] for values in both} == {(1, 1)}:
        return np.concatenate([np.broadcast_to(values[:, 0, 0], channels) for values in both])
    return np.concatenate([np.broadcast_to(values, (channels, height, width)) for values in both])


def _step(weights: Mapping[str, Float64Array], given: Mapping[str, Any], name: str) -> PublicStep:
    return PublicStep(
        scale=np.exp(-weights[f"{name}.2.s"]).reshape(-1),
        offset=-weights[f"{name}.2.t"].reshape(-1),
        mixing=_mixing(weights, f"{name}.1"),
        network=_network(weights, given, f"{name}.{_NETWORK}"),
        mask=Halves(transforms_first=given["split_mode"] == "channel_inv"),
    )


def _mixing(weights: Mapping[str, Float64Array], name: str) -> Float64Array:
    if f"{name}.W" in weights:
        return weights[f"{name}.W"]
    return lu_product(
        permutation=weights[f"{name}.P"],
        lower=weights[f"{name}.L"],
        upper=weights[f"{name}.U"],
        sign=weights[f"{name}.sign_S"],
        log_scale=weights[f"{name}.log_S"],
    )


def _network(weights: Mapping[str, Float64Array], given: Mapping[str, Any], name: str) -> FoldedNetwork:
    first, second, last = _convolutions(given)
    output = FoldedConv(weights[f"{name}.{last}.weight"], weights[f"{name}.{last}.bias"])
    return FoldedNetwork(
        _hidden_conv(weights, name, first),
        _hidden_conv(weights, name, second),
        _shift_and_logit(output, given["scale_map"]) if given["scale"] else _negated(output),
    )


def _hidden_conv(weights: Mapping[str, Float64Array], network: str, i: int) -> FoldedConv:
    """A hidden convolution, with its actnorm folded in if it has one."""
    weight, actnorm = weights[f"{network}.{i}.weight"], f"{network}.{i + 1}.actNorm"
    if f"{actnorm}.s" not in weights:
        return FoldedConv(weight, weights[f"{network}.{i}.bias"])
    conv = FoldedConv(weight, np.zeros(len(weight))).scaled(np.exp(weights[f"{actnorm}.s"]).reshape(-1))
    return FoldedConv(conv.weight, weights[f"{actnorm}.t"].reshape(-1))


def _shift_and_logit(conv: FoldedConv, scale_map: str) -> FoldedConv:
    """The output of the network as in `Transform`: shifts are added, and the scale multiplies."""
    conv = deinterleaved(conv)
    if scale_map == "exp":
        return _negated(conv)
    signs = np.repeat([-1.0, 1.0], len(conv.weight) // 2)
    return shift_and_logit(conv).scaled(signs)


def _negated(conv: FoldedConv) -> FoldedConv:
    return FoldedConv(-conv.weight, -conv.bias)
