"""Computes dequantization noise and latents from seeds, in the same way in every release.

The generator is Philox4x64-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"). NumPy guarantees its
raw words in all versions, but not its distributions. Therefore this file converts words to numbers, and the manifest
has the version of the conversion (`RandomnessVersion`). Noise has the same bits on every machine. Latents may differ in
the last bit, as the machines' logarithm, sine and cosine do.

Shapes: N images, H W C, D = H * W * C.
"""

from __future__ import annotations

import hashlib
import math
import struct
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from glowserve.images import UInt8Array
from glowserve.v1 import manifest_pb2

Float32Array = npt.NDArray[np.float32]

DEFAULT_SEED = 0
"""The seed of the dequantization noise if a request has none."""

ENCODING_NOISE = 0.5
"""The noise of an encoding: the middle of each bin, so that decoding may err by half a bin in both directions.
Variational dequantization maps it to another value."""

ATTEMPTS: Mapping[int, int] = {
    manifest_pb2.RANDOMNESS_VERSION_PHILOX_BOX_MULLER: 1,
    manifest_pb2.RANDOMNESS_VERSION_PHILOX_BOX_MULLER_REDRAWN: 3,
}
"""By version: how often a sample is drawn at most until it is finite. Each known version has an entry."""


def dequantization_noise(seed: int, images: UInt8Array, *, draw: int = 0) -> Float32Array:
    """The dequantization noise of images. It depends on the seed and the image, not on the image's position.

    Args:
        seed: 0 to 2^64 - 1.
        images: uint8 [N, H, W, C].
        draw: the index among several draws for the same images.

    Returns:
        float32 [N, H, W, C] in [0, 1), multiples of 2^-24.
    """
    n, size = len(images), math.prod(images.shape[1:])
    of_all = struct.pack("<Q3I", seed, *images.shape[1:])
    # The first draw has the key that it had before there were others.
    later = struct.pack("<Q", draw) if draw else b""
    words = np.empty((n, -(-size // 2)), "<u8")
    for image, row in zip(images, words, strict=True):
        row[:] = _words(_key(b"noise", of_all + image.tobytes() + later), len(row))
    noise = np.empty((n, size), np.float32)
    np.multiply(words.view("<u4")[:, :size] >> 8, np.float32(2**-24), out=noise, dtype=np.float32)
    return noise.reshape(images.shape)


def latents(
    seed: int, first: int, n: int, latent_size: int, temperature: float = 1.0, *, attempt: int = 0
) -> Float32Array:
    """The latents of samples `first` to `first + n - 1` of a seed, from a normal distribution.

    Args:
        seed: 0 to 2^64 - 1.
        first: the index of the first sample.
        n: how many samples.
        latent_size: D.
        temperature: the standard deviation.
        attempt: how often these samples have been drawn before, none of them finite; less than `ATTEMPTS`.

    Returns:
        float32 [n, D]; infinite where a large temperature exceeds the range of float32.
    """
    # The first attempt has the key that it had before there were others.
    again = struct.pack("<Q", attempt) if attempt else b""
    keys = [_key(b"sample", struct.pack("<2Q", seed, i) + again) for i in range(first, first + n)]
    drawn = np.stack([_normals(key, latent_size) for key in keys])
    with np.errstate(over="ignore"):
        return drawn * np.float32(temperature)


def class_of_sample(seed: int, index: int, shares: Sequence[float]) -> int:
    """The class of a sample of a seed, the same in all attempts, drawn with the probabilities p(c), [K]."""
    uniform = int(_words(_key(b"class", struct.pack("<2Q", seed, index)), 1)[0] >> 11) * 2.0**-53
    return min(int(np.searchsorted(np.cumsum(shares), uniform, side="right")), len(shares) - 1)


def _normals(key: bytes, size: int) -> Float32Array:
    """Standard normal numbers (Box and Muller 1958), in double precision from uniforms of 53 bits: never beyond 8.6."""
    pairs = -(-size // 2)
    uniforms = (_words(key, 2 * pairs) >> 11) * 2.0**-53
    radius = np.sqrt(-2 * np.log1p(-uniforms[0::2]))
    angle = 2 * np.pi * uniforms[1::2]
    normals = np.stack((radius * np.cos(angle), radius * np.sin(angle)), axis=1)
    return normals.reshape(-1)[:size].astype(np.float32)


def _key(use: bytes, content: bytes) -> bytes:
    """A key of 128 bits. The key depends on the use, so that noise and samples never share a stream."""
    return hashlib.blake2b(content, digest_size=16, person=b"glowserve." + use).digest()


def _words(key: bytes, n: int) -> npt.NDArray[np.uint64]:
    """The first n 64-bit words, little-endian, of a key's stream. NumPy's counter is 1 in the first block."""
    return np.asarray(_PHILOX.keyed(key).random_raw(n), dtype="<u8")


class _Philox(threading.local):
    """One generator per thread: a new generator would read random numbers from the system before it gets its key."""

    def __init__(self) -> None:
        self._generator = np.random.Philox(key=0)
        start: Any = self._generator.state
        # Numbers of Python: the setter reads one at a time, which takes ten times as long from an array.
        state = {"counter": start["state"]["counter"].tolist(), "key": None}
        self._state, self._start = state, start | {"state": state, "buffer": start["buffer"].tolist()}

    def keyed(self, key: bytes) -> np.random.Philox:
        """The thread's generator, at the start of the stream of a key of 128 bits."""
        self._state["key"] = struct.unpack("<2Q", key)
        self._generator.state = self._start
        return self._generator


_PHILOX = _Philox()
