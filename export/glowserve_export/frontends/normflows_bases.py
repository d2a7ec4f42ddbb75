"""The base distributions of normflows that are diagonal Gaussians: DiagGaussian, GlowBase and AffineGaussian.

The first two have class-conditional forms: ClassCondDiagGaussian, whose arrays have the class last, and GlowBase with
what each class adds to mean and log-scale.

Shapes: C H W of a level's latents.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from glowserve.runtime.manifest import MOST_CLASSES
from glowserve_export.convolution import Float64Array
from glowserve_export.errors import ForeignCheckpointError
from glowserve_export.frontends.class_priors import ClassPrior
from glowserve_export.frontends.state_dict import length, numbers

# The keys of each.
_KEYS = {
    "DiagGaussian": ("loc", "log_scale"),
    "GlowBase": ("loc", "loc_logs", "log_scale", "log_scale_logs"),
    "GlowBase with num_classes": (
        "loc",
        "loc_logs",
        "log_scale",
        "log_scale_logs",
        "loc_cc",
        "log_scale_cc",
    ),
    "ClassCondDiagGaussian": ("loc", "log_scale"),
    "AffineGaussian": ("transform.s", "transform.t"),
}
_OF_CLASSES = "ClassCondDiagGaussian"


def base_kinds(found: Mapping[str, Tensor], checkpoint: Path) -> dict[str, str]:
    """The class of each base distribution, "q0.0" first, which its keys tell.

    Raises:
        ForeignCheckpointError: one is no diagonal Gaussian, or a class-conditional AffineGaussian.
    """
    names = [f"q0.{i}" for i in range(len(numbers(found, r"flows\.(\d+)\.\d+\.")))]
    return {name: _kind(found, name, checkpoint) for name in names}


def _kind(found: Mapping[str, Tensor], name: str, checkpoint: Path) -> str:
    keys = {key.removeprefix(f"{name}.") for key in found if key.startswith(f"{name}.")}
    if f"{name}.transform.s_cc" in found:
        raise ForeignCheckpointError(
            f"checkpoint {checkpoint}: {name} is a class-conditional AffineGaussian, which is not supported; train a "
            "model with ClassCondDiagGaussian or GlowBase as base"
        )
    # DiagGaussian has the same keys, and an axis of one before the others.
    if (
        keys == set(_KEYS[_OF_CLASSES])
        and len(found[f"{name}.loc"].shape) == 4
        and found[f"{name}.loc"].shape[0] > 1
    ):
        return _OF_CLASSES
    for kind, own in _KEYS.items():
        if keys and keys <= set(own):
            return kind
    raise ForeignCheckpointError(
        f"checkpoint {checkpoint}: {name} has {', '.join(sorted(keys)) or 'no weights'}, and is none of the supported "
        f"base distributions, {', '.join(_KEYS)}; train a model with one of them"
    )


def base_shapes(
    kind: str, found: Mapping[str, Tensor], name: str, latents: tuple[int, int, int]
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Keys and shapes of a base distribution of latents [C, H, W]; none if its kind is not supported.

    An AffineGaussian has any shape that broadcasts to that of the latents.
    """
    for key in (f"{name}.{own}" for own in _KEYS.get(kind, ())):
        shape: tuple[int, ...] = (1, latents[0], 1, 1) if kind.startswith("GlowBase") else (1, *latents)
        if key.endswith("_cc"):
            shape = (_rows(found, key), latents[0])
        if kind == _OF_CLASSES:
            shape = (*latents, length(found, key, 3) or 0)
        if kind == "AffineGaussian" and key in found and _broadcasts(found[key].shape, shape):
            shape = tuple(found[key].shape)
        yield key, shape


def _rows(found: Mapping[str, Tensor], key: str) -> int:
    """Of a matrix; 0 if the weight is missing or none."""
    shape = found[key].shape if key in found else ()
    return shape[0] if len(shape) == 2 else 0


def _broadcasts(shape: Sequence[int], to: Sequence[int]) -> bool:
    return len(shape) == len(to) and all(own in (1, full) for own, full in zip(shape, to, strict=True))


def mean_and_log_scale(
    weights: Mapping[str, Float64Array], name: str, logscale_factor: float
) -> tuple[Float64Array, Float64Array]:
    """Of a base distribution, each of a shape that broadcasts to [C, H, W]."""
    if f"{name}.transform.s" in weights:
        return weights[f"{name}.transform.t"][0], weights[f"{name}.transform.s"][0]
    mean, log_scale = weights[f"{name}.loc"][0], weights[f"{name}.log_scale"][0]
    if f"{name}.loc_logs" not in weights:
        return mean, log_scale
    return (
        mean * np.exp(logscale_factor * weights[f"{name}.loc_logs"][0]),
        log_scale * np.exp(logscale_factor * weights[f"{name}.log_scale_logs"][0]),
    )


def class_prior(
    kind: str, weights: Mapping[str, Float64Array], name: str, logscale_factor: float
) -> ClassPrior | None:
    """Of a base distribution; None if it is the same for all classes."""
    if kind == _OF_CLASSES:
        return ClassPrior.of(*(np.moveaxis(weights[f"{name}.{own}"], 3, 0) for own in _KEYS[kind]))
    if f"{name}.loc_cc" not in weights:
        return None
    mean, log_scale = mean_and_log_scale(weights, name, logscale_factor)
    return ClassPrior.of(
        mean + weights[f"{name}.loc_cc"][:, :, None, None],
        log_scale + weights[f"{name}.log_scale_cc"][:, :, None, None],
    )


def class_count(found: Mapping[str, Tensor], kinds: Mapping[str, str], checkpoint: Path) -> int:
    """The number of classes; 0 if no base distribution is class-conditional.

    Raises:
        ForeignCheckpointError: they have different numbers of classes.
    """
    counts = {length(found, f"{name}.loc", 3) for name, kind in kinds.items() if kind == _OF_CLASSES}
    counts |= {_rows(found, f"{name}.loc_cc") for name in kinds if f"{name}.loc_cc" in found}
    if len(counts) > 1 or any(not 2 <= (count or 0) <= MOST_CLASSES for count in counts):
        found_counts = " and ".join(sorted(map(str, counts)))
        raise ForeignCheckpointError(
            f"checkpoint {checkpoint}: its base distributions have {found_counts} classes; all must have the same "
            f"number, 2 to {MOST_CLASSES}"
        )
    return next(iter(counts), 0) or 0
