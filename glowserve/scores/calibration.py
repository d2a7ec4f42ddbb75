"""The calibration of a bundle: the parts of held-out images, and what was fitted to some of them.

It is the file calibration.npz beside the manifest. Images of two kinds are in it: a density was fitted to the fitting
images; to the calibration images nothing was, and p-values compare with them.

Shapes: n images of a kind, L levels, C channels of an image, F numbers of a part.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, TypeVar, get_type_hints

import numpy as np
import numpy.typing as npt

from glowserve.arrays import Arrays, read_arrays, write_arrays
from glowserve.scores.density import STATISTICS, Density, Gaussian
from glowserve.scores.parts import Parts, widths

Stored = TypeVar("Stored")
Float64Array = npt.NDArray[np.float64]

MOST_BYTES = 2**26
"""Of the file, and of its arrays: the parts of a hundred thousand images."""

_FORMAT = 2


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """The calibration of one bundle."""

    images: Parts
    """Of the n calibration images, n at least 1; all are finite."""

    complexity: Float64Array
    """`complexity.complexity_bits_per_dim` of the calibration images, [n]. No p-value needs it, and explanations do."""

    fitting: Parts
    """Of the fitting images, at least 1; all are finite."""

    density: Density
    """Of the parts of an image, fitted to the fitting images."""

    codec: npt.NDArray[np.int64]
    """`complexity.fingerprint` of the bundle's canary where the calibration was computed."""


def write_calibration(calibration: Calibration) -> bytes:
    """The content of the file."""
    arrays = {
        **_named(calibration.images, "calibration"),
        **_named(calibration.fitting, "fitting"),
        **_named(calibration.density, "density"),
    }
    arrays |= {"complexity": calibration.complexity, "codec": calibration.codec}
    return write_arrays({"format": np.int64(_FORMAT), **arrays})


def read_calibration(data: bytes, image_channels: int, levels: int) -> Calibration:
    """The calibration in the content of a file.

    Args:
        data: the content; anybody may have written it.
        image_channels: C of the model.
        levels: L of the model.

    Raises:
        ValueError: the message says what is wrong with it.
    """
    arrays = read_arrays(data, MOST_BYTES)
    if (version := arrays.get("format")) is None or version.tolist() != _FORMAT:
        shown = None if version is None else version.tolist()
        raise ValueError(f"its format is {shown!r:.100}, and this version of glowserve reads {_FORMAT}")
    images = _read(Parts, arrays, "calibration")
    fitting = _read(Parts, arrays, "fitting")
    density = _read(Density, arrays, "density")
    width = widths(image_channels, levels)
    for name, parts in (("calibration", images), ("fitting", fitting)):
        _check_parts(parts, name, width)
    _check_density(density, width)
    complexity = _numbers(arrays, "complexity")
    if complexity.shape != (len(images),):
        raise ValueError(f"complexity has shape {list(complexity.shape)} and must have {[len(images)]}")
    codec = arrays.get("codec")
    if codec is None or codec.dtype.kind not in "iu" or codec.ndim != 1:
        raise ValueError("codec is missing, or no list of integers")
    return Calibration(
        images=images,
        complexity=complexity,
        fitting=fitting,
        density=density,
        codec=codec.astype(np.int64),
    )


def _named(stored: Any, name: str) -> dict[str, Any]:
    """The arrays of a dataclass of arrays, and of those in it, by their names in the file."""
    found: dict[str, Any] = {}
    for each in fields(stored):
        value = getattr(stored, each.name)
        key = f"{name}_{each.name}"
        found |= _named(value, key) if is_dataclass(value) else {key: value}
    return found


def _read(kind: type[Stored], arrays: Arrays, name: str) -> Stored:
    """The dataclass whose arrays have these names in the file: see `_named`."""
    found: dict[str, Any] = {}
    kinds: dict[str, Any] = get_type_hints(kind)
    for each, hint in kinds.items():
        key = f"{name}_{each}"
        nested = is_dataclass(hint)
        found[each] = _read(hint, arrays, key) if nested else _numbers(arrays, key)
    return kind(**found)


def _numbers(arrays: Arrays, name: str) -> npt.NDArray[np.float64]:
    array = arrays.get(name)
    if array is None:
        raise ValueError(f"{name} is missing")
    if array.dtype != np.float64:
        raise ValueError(f"{name} is of type {array.dtype} and must be float64")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} has a value that is not finite")
    return array


def _check_parts(parts: Parts, name: str, width: Mapping[str, int]) -> None:
    n = parts.log_likelihood.size
    if not n:
        raise ValueError(f"it has no {name} images")
    _check_shapes(parts, name, {"log_likelihood": (n,)} | {part: (n, f) for part, f in width.items()})


def _check_density(density: Density, width: Mapping[str, int]) -> None:
    contrasts = width["contrasts"]
    _check_gaussian(density.levels, "density_levels", width["log_prior"] + width["log_det"])
    _check_gaussian(density.channels, "density_channels", width["channels"])
    _check_gaussian(density.contrasts, "density_contrasts", contrasts)
    shapes = {"bits": (), "bits_by_contrast": (contrasts,), "median": (STATISTICS,), "scale": (STATISTICS,)}
    _check_shapes(density, "density", shapes)
    if not (density.scale > 0).all():
        raise ValueError("density_scale has a number that is not positive")


def _check_gaussian(gaussian: Gaussian, name: str, width: int) -> None:
    _check_shapes(gaussian, name, {"mean": (width,), "whitening": (width, width)})
    with np.errstate(divide="ignore"):
        if not np.isfinite(np.linalg.slogdet(gaussian.whitening)[1]):
            raise ValueError(f"{name}_whitening is a singular matrix")


def _check_shapes(part: object, name: str, shapes: Mapping[str, tuple[int, ...]]) -> None:
    for field, shape in shapes.items():
        found = getattr(part, field).shape
        if found != shape:
            raise ValueError(f"{name}_{field} has shape {list(found)} and must have {list(shape)}")
