"""The calibration of a bundle: the parts of held-out images, and what was fitted to some of them.

It is the file calibration.npz beside the manifest. Images of two kinds are in it: a density was fitted to the fitting
images; to the calibration images nothing was, and p-values compare with them.

Shapes: n calibration images, L levels, K components, F features.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any
from zipfile import ZipFile

import numpy as np
import numpy.typing as npt

from glowserve.scores.density import Mixture
from glowserve.scores.parts import FEATURES, Parts

MOST_BYTES = 2**26
"""Of the file, and of its arrays: the parts of half a million images."""

_FORMAT = 1
# Of the archive's headers.
_MOST_HEADERS = 2**16
_KINDS = {"calibration": Parts, "fitting": Parts, "density": Mixture}


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """The calibration of one bundle."""

    images: Parts
    """Of the n calibration images, n at least 1; all are finite."""

    fitting: Parts
    """Of the fitting images, at least 1; all are finite."""

    density: Mixture
    """Of the features of an image, fitted to the fitting images."""

    codec: npt.NDArray[np.int64]
    """`complexity.fingerprint` of the bundle's canary where the calibration was computed."""


def write_calibration(calibration: Calibration) -> bytes:
    """The content of the file."""
    parts: dict[str, Parts | Mixture] = {
        "calibration": calibration.images,
        "fitting": calibration.fitting,
        "density": calibration.density,
    }
    arrays = {
        f"{kind}_{each.name}": getattr(part, each.name)
        for kind, part in parts.items()
        for each in fields(part)
    }
    file = io.BytesIO()
    np.savez(file, format=np.int64(_FORMAT), codec=calibration.codec, **arrays)
    return file.getvalue()


def read_calibration(data: bytes, levels: int) -> Calibration:
    """The calibration in the content of a file.

    Args:
        data: the content; anybody may have written it.
        levels: L of the model.

    Raises:
        ValueError: the message says what is wrong with it.
    """
    arrays = _arrays(data)
    if (version := arrays.get("format")) is None or version.tolist() != _FORMAT:
        shown = None if version is None else version.tolist()
        raise ValueError(f"its format is {shown!r:.100}, and this version of glowserve reads {_FORMAT}")
    found: dict[str, Any] = {}
    for kind, type_ in _KINDS.items():
        names = {each.name: f"{kind}_{each.name}" for each in fields(type_)}
        found[kind] = type_(**{name: _numbers(arrays, key) for name, key in names.items()})
    images, fitting, density = found["calibration"], found["fitting"], found["density"]
    for name, parts in (("calibration", images), ("fitting", fitting)):
        _check_parts(parts, name, levels)
    _check_density(density)
    codec = arrays.get("codec")
    if codec is None or codec.dtype.kind not in "iu" or codec.ndim != 1:
        raise ValueError("codec is missing, or no list of integers")
    return Calibration(images=images, fitting=fitting, density=density, codec=codec.astype(np.int64))


def _arrays(data: bytes) -> Mapping[str, npt.NDArray[Any]]:
    try:
        with ZipFile(io.BytesIO(data)) as archive:  # a small file may hold large arrays
            size = sum(info.file_size for info in archive.infolist())
        if size > MOST_BYTES + _MOST_HEADERS:
            raise ValueError(f"it has {size} bytes of arrays and may have {MOST_BYTES}")
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            arrays = dict(file)
    except ValueError:
        raise
    except Exception as error:  # zip and NumPy raise many kinds of errors for foreign bytes
        raise ValueError(f"it is no archive of arrays ({type(error).__name__})") from error
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray):  # a member that is no array is read as bytes
            raise ValueError(f"its member {name!r:.100} is no array")
    return arrays


def _numbers(arrays: Mapping[str, npt.NDArray[Any]], name: str) -> npt.NDArray[np.float64]:
    array = arrays.get(name)
    if array is None:
        raise ValueError(f"{name} is missing")
    if array.dtype != np.float64:
        raise ValueError(f"{name} is of type {array.dtype} and must be float64")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} has a value that is not finite")
    return array


def _check_parts(parts: Parts, name: str, levels: int) -> None:
    n = parts.log_likelihood.size
    if not n:
        raise ValueError(f"it has no {name} images")
    shapes = {
        "log_likelihood": (n,),
        "log_prior": (n, levels),
        "log_det": (n, levels),
        "complexity_bits_per_dim": (n,),
    }
    _check_shapes(parts, name, shapes)


def _check_density(density: Mixture) -> None:
    k, f = density.weights.size, len(FEATURES)
    _check_shapes(density, "density", {"weights": (k,), "means": (k, f), "whitening": (k, f, f)})
    if not k or not (density.weights > 0).all() or not np.isclose(density.weights.sum(), 1):
        raise ValueError("density_weights are not positive numbers whose sum is 1")
    if not (np.abs(np.linalg.det(density.whitening)) > 0).all():
        raise ValueError("density_whitening has a singular matrix")


def _check_shapes(part: object, name: str, shapes: Mapping[str, tuple[int, ...]]) -> None:
    for field, shape in shapes.items():
        found = getattr(part, field).shape
        if found != shape:
            raise ValueError(f"{name}_{field} has shape {list(found)} and must have {list(shape)}")
