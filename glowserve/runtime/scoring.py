"""What the numbers of a graph mean: bits per dimension, percentiles, and what is not finite.

Shapes: N images, D values each.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from glowserve.images import UInt8Array
from glowserve.results import Scores
from glowserve.runtime.engine import Float32Array, Reverse
from glowserve.runtime.errors import NotFiniteError
from glowserve.v1.manifest_pb2 import Manifest

Float64Array = npt.NDArray[np.float64]

# The seed of the dequantization noise when a caller names none.
DEFAULT_SEED = 0
# Encoding takes the middle of every bin, so that decoding has half a bin to err in, either way. Where dequantization
# is learned, it takes what that makes of the middle.
ENCODING_NOISE = 0.5


class Scorer:
    """Turns the log-likelihoods of one bundle into scores.

    Args:
        manifest: the bundle's.
    """

    def __init__(self, manifest: Manifest) -> None:
        self._model, self._version = manifest.model, manifest.version
        self._latent_size = manifest.image.latent_size
        self._held_out = np.sort(np.asarray(manifest.calibration.bits_per_dim, dtype=np.float64))

    def score(self, log_likelihood: Float32Array, seed: int) -> Scores:
        """Scores of the graph's log-likelihoods, [N], which came of noise with `seed`.

        A log-likelihood that is not finite becomes minus infinity.
        """
        finite = np.isfinite(log_likelihood)
        nats = np.where(finite, log_likelihood.astype(np.float64), -np.inf)
        bits = bits_per_dim(nats, self._latent_size)
        # Of the held-out images, those that are less likely, and half of the ties.
        more_bits = len(self._held_out) - np.searchsorted(self._held_out, bits, side="right")
        as_many_or_more = len(self._held_out) - np.searchsorted(self._held_out, bits)
        percentile = 50 * (more_bits + as_many_or_more) / len(self._held_out)
        return Scores(nats, bits, percentile, finite, self._model, self._version, seed)


def bits_per_dim(log_likelihood: Float32Array | Float64Array, latent_size: int) -> Float64Array:
    """Nats of discrete images, [N], to bits per dimension, [N]."""
    return -np.asarray(log_likelihood, dtype=np.float64) / (latent_size * math.log(2))


def mismatched_values(images: UInt8Array, decoded: Reverse, n_bits: int) -> npt.NDArray[np.int64]:
    """How many values of each image, [N], do not come back in their bin after encoding and decoding."""
    shift = 8 - n_bits
    # What is not finite has not come back, whatever byte the graph makes of it.
    wrong = ((images >> shift) != (decoded.image >> shift)) | ~np.isfinite(decoded.pixels)
    counts: npt.NDArray[np.int64] = wrong.sum(axis=(1, 2, 3))
    return counts


def require_finite_latents(latent: Float32Array) -> None:
    """Refuses encodings with NaN or infinity in them.

    Raises:
        NotFiniteError: the message names the first such image.
    """
    _require_finite(
        latent, "images: image {} lies so far from the model's data that its latent is not finite"
    )


def require_finite_images(decoded: Reverse, *, first: int = 0, what: str = "latents: row") -> None:
    """Refuses images that were made of NaN or infinity.

    Args:
        decoded: what the graph returned.
        first: index of its first row, for the message.
        what: what a row is called, for the message.

    Raises:
        NotFiniteError: the message names the first such image.
    """
    _require_finite(decoded.pixels, what + " {} does not decode to a finite image", first)


def _require_finite(array: Float32Array, message: str, first: int = 0) -> None:
    finite = np.isfinite(array).reshape(len(array), -1).all(axis=1)
    if not finite.all():
        raise NotFiniteError(message.format(first + int(np.argmin(finite))), int((~finite).sum()))
