"""The base distributions of normflows that are diagonal Gaussians: DiagGaussian, GlowBase and AffineGaussian.

Shapes: C H W of a level's latents.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from glowserve_export.convolution import Float64Array
from glowserve_export.errors import ForeignCheckpointError
from glowserve_export.frontends.state_dict import length, numbers

# The keys of each.
_KEYS = {
    "DiagGaussian": ("loc", "log_scale"),
    "GlowBase": ("loc", "loc_logs", "log_scale", "log_scale_logs"),
    "AffineGaussian": ("transform.s", "transform.t"),
}


def base_kinds(found: Mapping[str, Tensor], checkpoint: Path) -> dict[str, str]:
    """The class of each base distribution, "q0.0" first, which its keys tell.

    Raises:
        ForeignCheckpointError: one is class-conditional, or no diagonal Gaussian.
    """
    names = [f"q0.{i}" for i in range(len(numbers(found, r"flows\.(\d+)\.\d+\.")))]
    return {name: _kind(found, name, checkpoint) for name in names}


def _kind(found: Mapping[str, Tensor], name: str, checkpoint: Path) -> str:
    keys = {key.removeprefix(f"{name}.") for key in found if key.startswith(f"{name}.")}
    # DiagGaussian and its class-conditional sibling have the same keys.
    if (length(found, f"{name}.loc", 0) or 1) > 1 or any(key.endswith("_cc") for key in keys):
        raise ForeignCheckpointError(
            f"checkpoint {checkpoint}: {name} is class-conditional, and class-conditional models are not supported; "
            "train one with DiagGaussian or GlowBase as base, without num_classes"
        )
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
        shape: tuple[int, ...] = (1, latents[0], 1, 1) if kind == "GlowBase" else (1, *latents)
        if kind == "AffineGaussian" and key in found and _broadcasts(found[key].shape, shape):
            shape = tuple(found[key].shape)
        yield key, shape


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
