"""From seeds to dequantization noise and latents, the same in every release.

NumPy promises the raw words of its Philox generator for good, but not what its distributions make of them; the
way from words to numbers is therefore here, and has a version in the manifest (`RandomnessVersion`). Noise is the same
to the bit on every machine; latents may differ in the last bit where the logarithm, sine and cosine do. Philox:
Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".

Shapes: N images, H W C, D = H * W * C.
"""

from __future__ import annotations

import hashlib
import struct
import threading
from typing import Any

import numpy as np
import numpy.typing as npt

from glowserve.images import UInt8Array

Float32Array = npt.NDArray[np.float32]

DEFAULT_SEED = 0
"""Of the dequantization noise, where a caller names none."""

ENCODING_NOISE = 0.5
"""The noise of an encoding: the middle of every bin, so that decoding has half a bin to err in, either way. Learned
dequantization maps it to another value."""


def dequantization_noise(seed: int, images: UInt8Array) -> Float32Array:
    """Noise in [0, 1) for images, a function of the seed and of each image, not of its place.

    Args:
        seed: 0 to 2^64 - 1.
        images: uint8 [N, H, W, C].

    Returns:
        float32 [N, H, W, C], multiples of 2^-24.
    """
    noise = np.empty(images.shape, np.float32)
    for i, image in enumerate(images):
        key = _key(b"noise", struct.pack("<Q3I", seed, *image.shape), image.tobytes())
        halves = _words(key, -(-image.size // 2)).view("<u4")[: image.size]
        noise[i] = ((halves >> 8) * np.float32(2**-24)).reshape(image.shape)
    return noise


def latents(seed: int, first: int, n: int, latent_size: int, temperature: float = 1.0) -> Float32Array:
    """Normal latents of samples `first` to `first + n - 1` of a seed.

    Args:
        seed: 0 to 2^64 - 1.
        first: index of the first sample.
        n: how many.
        latent_size: D.
        temperature: their standard deviation.

    Returns:
        float32 [n, D]; infinite where a large temperature leaves the range of float32.
    """
    drawn = np.stack(
        [_normals(_key(b"sample", struct.pack("<2Q", seed, i)), latent_size) for i in range(first, first + n)]
    )
    with np.errstate(over="ignore"):
        return drawn * np.float32(temperature)


def _normals(key: bytes, size: int) -> Float32Array:
    """Box and Muller 1958, in double precision, on uniforms of 53 bits: nothing beyond 8.6 is ever drawn."""
    pairs = -(-size // 2)
    uniforms = (_words(key, 2 * pairs) >> 11) * 2.0**-53
    radius = np.sqrt(-2 * np.log1p(-uniforms[0::2]))
    angle = 2 * np.pi * uniforms[1::2]
    normals = np.stack((radius * np.cos(angle), radius * np.sin(angle)), axis=1)
    return normals.reshape(-1)[:size].astype(np.float32)


def _key(use: bytes, *parts: bytes) -> bytes:
    """128 bits; streams of different use never share a key."""
    digest = hashlib.blake2b(digest_size=16, person=b"glowserve." + use)
    for part in parts:
        digest.update(part)
    return digest.digest()


def _words(key: bytes, n: int) -> npt.NDArray[np.uint64]:
    """The first n 64-bit words of Philox4x64-10 with a key, little-endian; NumPy's counter is 1 in the first block."""
    return np.asarray(_PHILOX.keyed(key).random_raw(n), dtype="<u8")


class _Philox(threading.local):
    """A generator for each thread. A new one would ask the system for random numbers before it is given its key."""

    def __init__(self) -> None:
        self._generator = np.random.Philox(key=0)
        self._start: Any = self._generator.state

    def keyed(self, key: bytes) -> np.random.Philox:
        """It, as if it had just been made with this key of 128 bits."""
        self._start["state"]["key"] = np.frombuffer(key, "<u8")
        self._generator.state = self._start
        return self._generator


_PHILOX = _Philox()
