"""Measures the graphs of a bundle, run by the engine that will serve them, against the reference in float64.

Shapes: N images, H W C of an image, D = H * W * C. Images are encoded with noise 0.5: the centers of bins if
dequantization is uniform.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from glowserve.images import UInt8Array
from glowserve.likelihood import bits_per_dim
from glowserve.mismatch import mismatched_values
from glowserve.runtime.engine import Engine, Float32Array
from glowserve.runtime.randomness import (
    DEFAULT_SEED,
    ENCODING_NOISE,
    dequantization_noise,
    latents,
)
from glowserve.runtime.repository import FORWARD, Bundle
from glowserve.v1 import manifest_pb2
from glowserve_export.calibration import INT8_BOUND
from glowserve_export.divergence import diverging_layer_forward, diverging_layer_reverse
from glowserve_export.folded import Float64Array, FoldedGlow, condition_number, inversion_residual
from glowserve_export.frontends.checks import CONDITION_LIMIT
from glowserve_export.out_of_distribution import out_of_distribution_images
from glowserve_export.reference import Reference

# |error| / |float64 value| of a log-likelihood. Rounding alone causes about 1e-6.
LOG_LIKELIHOOD_BOUND = 1e-5
# The error of a log-likelihood in bits per dimension.
BITS_PER_DIM_BOUND = 1e-3
# Values of held-out images that encoding and decoding may change: fp32 is lossless.
ROUND_TRIP_BOUND = 0
# The error of a decoded value, in grey values of 256.
DECODE_BOUND = 0.1
# The largest entry of |W W^-1 - I| in float32. Beyond it, the graphs are not each other's inverse.
RESIDUAL_BOUND = 1e-2
# Low precision: the mean loss in bits per dimension, and the share of values that encoding and decoding may change.
LOSS_BOUNDS = {"fp16": 1e-3, "int8": INT8_BOUND}
CHANGED_BOUNDS = {"fp16": 0.01, "int8": 0.5}

_BATCH = 32
# The layer in a message, where errors add up over all layers.
_NO_LAYER = "no single one"
_NETWORKS = "the coupling networks"


@dataclass(frozen=True)
class Value:
    """A measured value, and how to find the layer that causes it if it misses its bound."""

    name: str
    """With the unit."""

    value: float
    """The measured value."""

    bound: float | None = None
    """The largest allowed value; None if the value is only reported."""

    layer: str = ""
    """The layer with the largest value, if the value belongs to one."""

    find_layer: Callable[[], str] | None = None
    """Finds the layer where `layer` is empty."""


@dataclass(frozen=True)
class Measurement:
    """Measures one bundle. Each method returns some of the values."""

    reference: Reference
    """The model in float64."""

    glow: FoldedGlow
    """The folded model that the graphs were written from."""

    bundle: Bundle
    """The bundle."""

    engine: Engine
    """Runs the bundle."""

    images: UInt8Array
    """Held-out images, [N, H, W, C]."""

    @cached_property
    def steps(self) -> list[manifest_pb2.StepProof]:
        """Every 1x1 convolution with its actnorm."""
        return [
            manifest_pb2.StepProof(
                step=name, condition_number=condition_number(step.matrix), residual=inversion_residual(step)
            )
            for name, step in self.glow.named_steps()
        ]

    def matrices(self) -> list[Value]:
        """The worst of `steps`."""
        condition = max(self.steps, key=lambda step: step.condition_number)
        residual = max(self.steps, key=lambda step: step.residual)
        return [
            Value("worst condition number", condition.condition_number, CONDITION_LIMIT, condition.step),
            Value("worst |W W^-1 - I|", residual.residual, RESIDUAL_BOUND, residual.step),
        ]

    @cached_property
    def _noise(self) -> Float32Array:
        return dequantization_noise(DEFAULT_SEED, self.images)

    @cached_property
    def _log_likelihoods(self) -> tuple[Float64Array, Float64Array]:
        """The log-likelihoods of the graph and of the reference with the noise of the default seed, nats, [N] each."""
        graph, reference = [], []
        for batch in self._batches():
            images, noise = self.images[batch], self._noise[batch]
            graph.append(self.engine.forward(images, noise).log_likelihood.astype(np.float64))
            reference.append(self.reference.log_likelihood(images, noise))
        return np.concatenate(graph), np.concatenate(reference)

    def errors(self) -> list[Value]:
        """fp32: the errors of the log-likelihoods."""
        graph, reference = self._log_likelihoods
        error = np.abs(graph - reference)
        relative = float((error / np.abs(reference)).max())
        bits = float(np.abs(bits_per_dim(error, self.glow.dimensions)).max())
        find = self._find_forward_layer
        return [
            Value("log-likelihood, relative error", relative, LOG_LIKELIHOOD_BOUND, find_layer=find),
            Value("log-likelihood, error in bits/dim", bits, BITS_PER_DIM_BOUND, find_layer=find),
        ]

    def _find_forward_layer(self) -> str:
        layer = diverging_layer_forward(self.reference, self.bundle, self.images[:2], self._noise[:2])
        return layer or f"the log-determinants of {FORWARD}"

    def losses(self) -> list[Value]:
        """Low precision: its own bits per dimension, and the loss against float64 with the same noise."""
        graph, reference = (bits_per_dim(nats, self.glow.dimensions) for nats in self._log_likelihoods)
        lost, precision = graph - reference, self.bundle.manifest.flow.precision
        bound = LOSS_BOUNDS[precision]
        return [
            Value("bits/dim", float(graph.mean())),
            Value(f"bits/dim lost in {precision}", float(lost.mean()), bound, layer=_NETWORKS),
            Value("bits/dim lost, worst image", float(lost.max())),
        ]

    def round_trip(self) -> list[Value]:
        """fp32: images encoded and decoded."""
        changed, distance = 0, np.float32(0)
        for batch in self._batches():
            images = self.images[batch]
            decoded = self.engine.reverse(self._encode(images))
            changed += int(mismatched_values(images, decoded, self.glow.n_bits).sum())
            error = np.abs(decoded.pixels - self.reference.dequantized(images, _encoding_noise(images)))
            distance = np.maximum(distance, error.max())  # NaN stays NaN
        find = self._find_round_trip_layer
        return [
            Value("round trip, values changed", changed, ROUND_TRIP_BOUND, find_layer=find),
            # In bins. If dequantization is uniform, the border of a bin is at 0.5.
            Value("round trip, farthest from what was encoded", float(distance)),
            # Values with noise near 0 or 1 may be rounded to the next bin.
            Value("round trip with random noise, values changed", self._changed_with_random_noise()),
        ]

    def _find_round_trip_layer(self) -> str:
        images = self.images[:2]
        forward = diverging_layer_forward(self.reference, self.bundle, images, _encoding_noise(images))
        reverse = diverging_layer_reverse(self.reference, self.bundle, self._encode(images))
        return " or ".join(filter(None, (forward, reverse))) or _NO_LAYER

    def _changed_with_random_noise(self) -> int:
        return sum(int(self._changed_values(self.images[i], self._noise[i]).sum()) for i in self._batches())

    def low_precision_round_trip(self) -> list[Value]:
        """Low precision: images encoded and decoded, and samples."""
        changed = np.concatenate([self._changed_values(self.images[i]) for i in self._batches()])
        samples = self.engine.reverse(self._sampled_latents()).pixels
        finite = np.isfinite(samples).all(axis=(1, 2, 3))
        share, bound = (
            float(changed.sum() / self.images.size),
            CHANGED_BOUNDS[self.bundle.manifest.flow.precision],
        )
        return [
            Value("round trip, share of values changed", share, bound, layer=_NETWORKS),
            Value("round trip, share of images changed", float((changed > 0).mean())),
            Value("samples at temperature 1, share not finite", float((~finite).mean())),
        ]

    def decoding(self) -> list[Value]:
        """fp32: the errors of decoded pixels, for encoded images and for samples."""
        encoded = self._encode(self.images[:_BATCH])

        def find() -> str:
            return diverging_layer_reverse(self.reference, self.bundle, encoded[:2]) or _NO_LAYER

        error, sampling_error = self._decoding_error(encoded), self._decoding_error(self._sampled_latents())
        return [
            Value("decoding, error in grey values", error, DECODE_BOUND, find_layer=find),
            Value("decoding samples at temperature 1, error in grey values", sampling_error),
        ]

    def out_of_distribution(self) -> list[manifest_pb2.UnseenProof]:
        """How many images of each kind have a finite likelihood, and how many decode to the same image."""
        counts = []
        for kind, images in out_of_distribution_images(self.images).items():
            forward = self.engine.forward(images, _encoding_noise(images))
            finite = np.isfinite(forward.log_likelihood) & np.isfinite(forward.latent).all(axis=1)
            decoded = self.engine.reverse(forward.latent)
            lossless = finite & (mismatched_values(images, decoded, self.glow.n_bits) == 0)
            counts.append(
                manifest_pb2.UnseenProof(
                    kind=kind, images=len(images), finite=int(finite.sum()), returned=int(lossless.sum())
                )
            )
        return counts

    def _batches(self) -> list[slice]:
        return [slice(i, i + _BATCH) for i in range(0, len(self.images), _BATCH)]

    def _changed_values(self, images: UInt8Array, noise: Float32Array | None = None) -> npt.NDArray[np.int64]:
        """The number of values of each image that encoding and decoding change, [N]."""
        latent = self.engine.forward(images, _encoding_noise(images) if noise is None else noise).latent
        return mismatched_values(images, self.engine.reverse(latent), self.glow.n_bits)

    def _encode(self, images: UInt8Array) -> Float32Array:
        return self.engine.forward(images, _encoding_noise(images)).latent

    def _sampled_latents(self) -> Float32Array:
        return latents(DEFAULT_SEED, 0, _BATCH, self.glow.dimensions)

    def _decoding_error(self, latent: Float32Array) -> float:
        bins = self.engine.reverse(latent).pixels - self.reference.pixels(latent)
        return float(np.abs(bins).max() * 2 ** (8 - self.glow.n_bits))


def _encoding_noise(images: UInt8Array) -> Float32Array:
    return np.full(images.shape, ENCODING_NOISE, np.float32)
