"""The attributes of a bundle: directions in the latent space along which images are moved.

They are the file attributes.npz beside the manifest: `names`, Unicode [A]; `directions`, float32 [A, D]; `separated`,
float32 [A]. An attribute's direction is the mean latent of labelled images that have it minus that of the images that
do not: Kingma and Dhariwal 2018, "Glow", section 6, "Semantic Manipulation".

Shapes: A attributes, S strengths, D = H * W * C.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from glowserve.arrays import read_arrays, write_arrays
from glowserve.runtime.errors import BundleError, InvalidRequestError, MissingFileError
from glowserve.runtime.repository import ATTRIBUTES, Bundle

Float32Array = npt.NDArray[np.float32]

MOST_BYTES = 2**26
"""Of the file, and of its arrays."""
MOST_ATTRIBUTES = 256
LONGEST_NAME = 128
"""Characters."""

# A message lists so many names; ListModels has all.
_MOST_LISTED = 20


@dataclass(frozen=True)
class Attributes:
    """The attributes of one bundle, of which there may be none."""

    names: tuple[str, ...]
    """Of the A attributes, each once."""

    directions: Float32Array
    """[A, D]; finite."""

    separated: Float32Array
    """The share of held-out images that each direction separates, [A], 0 to 1: of the images with the attribute, and of
    those without, the shares on their side of the middle between both means, averaged. 0.5 is chance."""

    def path(self, latent: Float32Array, names: Sequence[str], strengths: Sequence[float]) -> Float32Array:
        """A latent moved along attributes, float32 [S, D]; infinite where the sum exceeds float32.

        Args:
            latent: float32 [D].
            names: of attributes that there are; their directions are added up.
            strengths: the S multiples of that sum.
        """
        own = [self.names.index(name) for name in names]
        start, direction = latent.astype(np.float64), self.directions[own].sum(axis=0, dtype=np.float64)
        path = np.empty((len(strengths), len(latent)), np.float32)
        with np.errstate(over="ignore"):
            # All at once would take four times the memory.
            for row, strength in zip(path, strengths, strict=True):
                row[:] = start + strength * direction
        return path


def write_attributes(attributes: Attributes) -> bytes:
    """The content of the file."""
    return write_arrays(
        {
            "names": np.array(attributes.names, np.str_),
            "directions": attributes.directions.astype("<f4"),
            "separated": attributes.separated.astype("<f4"),
        }
    )


def read_attributes(data: bytes) -> Attributes:
    """What `write_attributes` wrote in this process or its parent; there may be none."""
    arrays = read_arrays(data, MOST_BYTES)
    return Attributes(tuple(arrays["names"].tolist()), arrays["directions"], arrays["separated"])


def bundle_attributes(bundle: Bundle) -> Attributes:
    """The attributes of a bundle: none, unless they were computed.

    Raises:
        BundleError: the file is missing or damaged, although the manifest lists it.
    """
    size = bundle.manifest.image.latent_size
    if not bundle.has(ATTRIBUTES):
        return Attributes((), np.empty((0, size), np.float32), np.empty(0, np.float32))
    try:
        return _read(bundle.read(ATTRIBUTES, most=MOST_BYTES), size)
    except ValueError as error:
        raise BundleError(
            f"bundle {bundle.path}: {ATTRIBUTES}: {error}; `glowserve attributes {bundle.path} --data LABELLED` writes "
            "a version with a new one"
        ) from None


def check_attributes(names: Sequence[str], attributes: Attributes, bundle: Bundle) -> None:
    """Checks that a bundle has the attributes that a request names.

    Raises:
        MissingFileError: it has none at all.
        InvalidRequestError: it lacks one, the request names one twice, or it names none.
    """
    if not attributes.names:
        model = bundle.manifest.model
        raise MissingFileError(
            f"{model} version {bundle.manifest.version} has no attributes; `glowserve attributes REPOSITORY/{model} "
            "--data LABELLED` writes a version that has them"
        )
    if not names:
        raise InvalidRequestError(f"attributes is empty; {_listed(attributes)}", "attributes")
    for i, name in enumerate(names):
        field = f"attributes[{i}]"
        if name not in attributes.names:
            raise InvalidRequestError(f"{field} is {name[:LONGEST_NAME]!r}; {_listed(attributes)}", field)
        if name in names[:i]:
            raise InvalidRequestError(f"{field} is {name!r} once more; name each attribute once", field)


def _listed(attributes: Attributes) -> str:
    names, more = attributes.names[:_MOST_LISTED], len(attributes.names) - _MOST_LISTED
    return f"the attributes are {', '.join(names)}" + (f", and {more} more" if more > 0 else "")


def _read(data: bytes, size: int) -> Attributes:
    """The attributes in the content of a file, for latents of a size.

    Raises:
        ValueError: the message says what is wrong with it.
    """
    arrays = read_arrays(data, MOST_BYTES)
    for name, kind in (("names", "U"), ("directions", "f"), ("separated", "f")):
        if name not in arrays or arrays[name].dtype.kind != kind:
            raise ValueError(
                f"its array {name!r} is missing, or of another type than the one that belongs there"
            )
    names, directions, separated = (arrays[name] for name in ("names", "directions", "separated"))
    n = len(names) if names.ndim == 1 else 0
    if not 1 <= n <= MOST_ATTRIBUTES or len(set(names.tolist())) < n:
        raise ValueError(
            f"names has shape {list(names.shape)}; it must be 1 to {MOST_ATTRIBUTES} different names"
        )
    if not all(1 <= len(name) <= LONGEST_NAME for name in names.tolist()):
        raise ValueError(f"a name is empty, or has more than {LONGEST_NAME} characters")
    if directions.shape != (n, size) or directions.dtype != np.float32 or not np.isfinite(directions).all():
        raise ValueError(
            f"directions is {directions.dtype} {list(directions.shape)}; it must be float32 {[n, size]}, and finite"
        )
    if separated.shape != (n,) or not ((separated >= 0) & (separated <= 1)).all():
        raise ValueError(
            f"separated has shape {list(separated.shape)}; it must have {[n]} values from 0 to 1"
        )
    return Attributes(tuple(names.tolist()), directions, separated.astype(np.float32))
