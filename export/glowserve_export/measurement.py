"""Measures the graphs of a bundle, run by the engine that will serve them, against the reference in float64.

Shapes: N images, H W C of an image, D = H * W * C. Images are encoded with noise 0.5: the centers of bins if
dequantization is uniform.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from glowserve.images import UInt8Array
from glowserve.likelihood import bits_per_dim
from glowserve.mismatch import mismatched_values
from glowserve.runtime.checks import BoolArray, finite_images
from glowserve.runtime.engine import Engine, Float32Array, Int64Array, Reverse
from glowserve.runtime.randomness import (
    DEFAULT_SEED,
    ENCODING_NOISE,
    dequantization_noise,
    latents,
)
from glowserve.runtime.repository import FORWARD, Bundle
from glowserve.v1 import manifest_pb2
from glowserve.verification import SAMPLES_NOT_FINITE
from glowserve_export.calibration import INT8_BOUND
from glowserve_export.convolution import Float64Array
from glowserve_export.divergence import diverging_layer_forward, diverging_layer_reverse
from glowserve_export.folded import FoldedGlow, condition_number, inversion_residual
from glowserve_export.frontends.checks import CONDITION_LIMIT
from glowserve_export.out_of_distribution import out_of_distribution_images
from glowserve_export.reference import Reference
from glowserve_export.workload import batch_size, batches

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

# The most encoded images that are decoded in float64, and the most samples: float64 is slow.
_DECODED_IMAGES = 32
_SAMPLES = 32
_SAMPLES_IN_FLOAT64 = 4
# The layer in a message, where errors add up over all layers.
_NO_LAYER = "no single one"
_NETWORKS = "the coupling networks"


@dataclass(frozen=True, kw_only=True)
class Value:
    """A measured value, and how to find the layer that causes it if it misses its bound."""

    name: str
    """With the unit."""

    value: float
    """The measured value."""

    images: int = 0
    """The number of images or samples that were measured; 0 if the value belongs to the weights."""

    not_finite: int = 0
    """The number of them that have no finite value."""

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
            Value(
                name="worst condition number",
                value=condition.condition_number,
                bound=CONDITION_LIMIT,
                layer=condition.step,
            ),
            Value(
                name="worst |W W^-1 - I|",
                value=residual.residual,
                bound=RESIDUAL_BOUND,
                layer=residual.step,
            ),
        ]

    def errors(self) -> list[Value]:
        """fp32: the errors of the log-likelihoods."""
        graph, reference = self._log_likelihoods
        error = np.abs(graph - reference)
        bits = np.abs(bits_per_dim(error, self.glow.dimensions))
        find = self._find_forward_layer
        return [
            _largest("log-likelihood, relative error", error / np.abs(reference), LOG_LIKELIHOOD_BOUND, find),
            _largest("log-likelihood, error in bits/dim", bits, BITS_PER_DIM_BOUND, find),
            *self._errors_of_classes(),
        ]

    def _errors_of_classes(self) -> Iterator[Value]:
        """The largest error of log p(x | c) of each image."""
        if self.glow.classes is None:
            return
        error = np.empty(len(self.images))
        for batch in self._batches("scoring each class in float64"):
            images, noise = self.images[batch], self._noise[batch]
            forward = self.engine.forward(images, noise)
            assert forward.log_posterior is not None
            joint = self.reference.log_likelihood(images, noise)[:, None] + self.reference.log_posterior(
                images, noise
            )
            found = forward.log_likelihood[:, None].astype(np.float64) + forward.log_posterior
            error[batch] = np.abs((found - joint) / (joint - self.glow.classes.log_share)).max(axis=1)
        yield _largest("log-likelihood of each class, relative error", error, LOG_LIKELIHOOD_BOUND)

    def losses(self) -> list[Value]:
        """Low precision: its own bits per dimension, and the loss against float64 with the same noise."""
        graph, reference = (bits_per_dim(nats, self.glow.dimensions) for nats in self._log_likelihoods)
        lost, precision = graph - reference, self.bundle.manifest.flow.precision
        return [
            Value(name="bits/dim", value=float(graph.mean()), images=len(graph)),
            Value(
                name=f"bits/dim lost in {precision}",
                value=float(lost.mean()),
                images=len(lost),
                not_finite=_not_finite(lost),
                bound=LOSS_BOUNDS[precision],
                layer=_NETWORKS,
            ),
            _largest("bits/dim lost, worst image", lost),
        ]

    def round_trip(self) -> list[Value]:
        """fp32: images encoded and decoded."""
        distance = np.empty(len(self.images))
        for batch in self._batches("comparing with what was encoded"):
            images = self.images[batch]
            encoded = self.reference.dequantized(images, _encoding_noise(images))
            distance[batch] = _worst_pixel(self._decoded.pixels[batch] - encoded)
        return [
            Value(
                name="round trip, values changed",
                value=int(self._changed.sum()),
                images=len(self.images),
                bound=ROUND_TRIP_BOUND,
                find_layer=self._find_round_trip_layer,
            ),
            # In bins. If dequantization is uniform, the border of a bin is at 0.5.
            _largest("round trip, farthest from what was encoded", distance),
            # Values with noise near 0 or 1 may be rounded to the next bin.
            Value(
                name="round trip with random noise, values changed",
                value=self._changed_with_random_noise(),
                images=len(self.images),
            ),
        ]

    def low_precision_round_trip(self) -> list[Value]:
        """Low precision: images encoded and decoded, and samples."""
        changed, images = self._changed, len(self.images)
        _, finite = self._samples
        return [
            Value(
                name="round trip, share of values changed",
                value=float(changed.sum() / self.images.size),
                images=images,
                bound=CHANGED_BOUNDS[self.bundle.manifest.flow.precision],
                layer=_NETWORKS,
            ),
            Value(
                name="round trip, share of images changed",
                value=float((changed > 0).mean()),
                images=images,
            ),
            _not_finite_samples(finite),
        ]

    def decoding(self) -> list[Value]:
        """fp32: the errors of decoded pixels, for encoded images and for samples."""
        encoded = self._encoded[:_DECODED_IMAGES]

        def find() -> str:
            return diverging_layer_reverse(self.reference, self.bundle, encoded[:2]) or _NO_LAYER

        error = self._decoding_error(encoded, self._decoded.pixels, "decoding in float64")
        values = [_largest("decoding, error in grey values", error, DECODE_BOUND, find)]
        samples, finite = self._samples
        few = np.flatnonzero(finite)[:_SAMPLES_IN_FLOAT64]
        if len(few):
            latent, classes = self._sampled_latents()
            sampling_error = self._decoding_error(
                latent[few],
                samples[few],
                "decoding samples in float64",
                None if classes is None else classes[few],
            )
            values.append(_largest("decoding samples at temperature 1, error in grey values", sampling_error))
        return [*values, _not_finite_samples(finite)]

    def out_of_distribution(self) -> list[manifest_pb2.UnseenProof]:
        """How many images of each kind have a finite likelihood, and how many decode to the same image."""
        kinds = out_of_distribution_images(self.images, most=max(4, len(self.images) // 4))
        return [self._out_of_distribution(kind, images) for kind, images in kinds.items()]

    def _out_of_distribution(self, kind: str, images: UInt8Array) -> manifest_pb2.UnseenProof:
        finite, lossless = np.empty((2, len(images)), bool)
        for batch in batches(len(images), self._batch_size, f"out-of-distribution images: {kind}"):
            forward = self.engine.forward(images[batch], _encoding_noise(images[batch]))
            finite[batch] = np.isfinite(forward.log_likelihood) & np.isfinite(forward.latent).all(axis=1)
            decoded = self.engine.reverse(forward.latent)
            lossless[batch] = mismatched_values(images[batch], decoded, self.glow.n_bits) == 0
        return manifest_pb2.UnseenProof(
            kind=kind, images=len(images), finite=int(finite.sum()), returned=int((finite & lossless).sum())
        )

    # What several values are computed from

    @cached_property
    def _batch_size(self) -> int:
        return batch_size(self.glow)

    def _batches(self, doing: str) -> Iterator[slice]:
        return batches(len(self.images), self._batch_size, doing)

    @cached_property
    def _noise(self) -> Float32Array:
        return dequantization_noise(DEFAULT_SEED, self.images)

    @cached_property
    def _log_likelihoods(self) -> tuple[Float64Array, Float64Array]:
        """The log-likelihoods of the graph and of the reference with the noise of the default seed, nats, [N] each."""
        reference = np.empty(len(self.images))
        for batch in batches(len(self.images), batch_size(self.glow, 8), "scoring in float64"):
            reference[batch] = self.reference.log_likelihood(self.images[batch], self._noise[batch])
        return self._noisy[0].astype(np.float64), reference

    @cached_property
    def _noisy(self) -> tuple[Float32Array, Float32Array]:
        """The graph's log-likelihoods [N] and latents [N, D] with the noise of the default seed."""
        return self._forward(self._noise, "scoring")

    @cached_property
    def _encoded(self) -> Float32Array:
        """The graph's latents with noise 0.5, [N, D]."""
        return self._forward(_encoding_noise(self.images), "encoding")[1]

    def _forward(self, noise: Float32Array, doing: str) -> tuple[Float32Array, Float32Array]:
        nats = np.empty(len(self.images), np.float32)
        latent = np.empty((len(self.images), self.glow.dimensions), np.float32)
        for batch in self._batches(doing):
            forward = self.engine.forward(self.images[batch], noise[batch])
            nats[batch], latent[batch] = forward.log_likelihood, forward.latent
        return nats, latent

    @cached_property
    def _decoded(self) -> Reverse:
        """The images that the graph decodes from `_encoded`."""
        return self._reverse(self._encoded, "decoding")

    @cached_property
    def _changed(self) -> npt.NDArray[np.int64]:
        """The number of values of each image that encoding and decoding change, [N]."""
        return mismatched_values(self.images, self._decoded, self.glow.n_bits)

    def _changed_with_random_noise(self) -> int:
        decoded = self._reverse(self._noisy[1], "decoding with random noise")
        return int(mismatched_values(self.images, decoded, self.glow.n_bits).sum())

    @cached_property
    def _samples(self) -> tuple[Float32Array, BoolArray]:
        """The pixels of samples at temperature 1 [M, H, W, C], and whether each is finite, [M]."""
        latent, classes = self._sampled_latents()
        decoded = self._reverse(latent, "sampling", classes)
        return decoded.pixels, finite_images(decoded)

    def _sampled_latents(self) -> tuple[Float32Array, Int64Array | None]:
        """Latents, and the classes in turn if there are any."""
        n = min(_SAMPLES, len(self.images))
        classes = None if self.glow.classes is None else np.arange(n) % len(self.glow.classes)
        return latents(DEFAULT_SEED, 0, n, self.glow.dimensions), classes

    def _reverse(self, latent: Float32Array, doing: str, classes: Int64Array | None = None) -> Reverse:
        parts = [
            self.engine.reverse(latent[batch], None if classes is None else classes[batch])
            for batch in batches(len(latent), self._batch_size, doing)
        ]
        return Reverse(
            np.concatenate([part.image for part in parts]), np.concatenate([part.pixels for part in parts])
        )

    def _decoding_error(
        self, latent: Float32Array, pixels: Float32Array, doing: str, classes: Int64Array | None = None
    ) -> Float64Array:
        """The largest error of each decoded latent, in grey values, [N]."""
        error = np.empty(len(latent))
        for batch in batches(len(latent), batch_size(self.glow, 8), doing):
            own = None if classes is None else classes[batch]
            error[batch] = _worst_pixel(pixels[batch] - self.reference.pixels(latent[batch], own))
        greys_per_bin: int = 2 ** (8 - self.glow.n_bits)
        return error * greys_per_bin

    def _find_forward_layer(self) -> str:
        layer = diverging_layer_forward(self.reference, self.bundle, self.images[:2], self._noise[:2])
        return layer or f"the log-determinants of {FORWARD}"

    def _find_round_trip_layer(self) -> str:
        images = self.images[:2]
        forward = diverging_layer_forward(self.reference, self.bundle, images, _encoding_noise(images))
        reverse = diverging_layer_reverse(self.reference, self.bundle, self._encoded[:2])
        return " or ".join(filter(None, (forward, reverse))) or _NO_LAYER


def _largest(
    name: str,
    values: Float64Array,
    bound: float | None = None,
    find_layer: Callable[[], str] | None = None,
) -> Value:
    """The largest of the values of images, [N]."""
    return Value(
        name=name,
        value=float(values.max()),  # NaN stays NaN
        images=len(values),
        not_finite=_not_finite(values),
        bound=bound,
        find_layer=find_layer,
    )


def _not_finite(values: Float64Array) -> int:
    return int((~np.isfinite(values)).sum())


def _not_finite_samples(finite: BoolArray) -> Value:
    return Value(name=SAMPLES_NOT_FINITE, value=int((~finite).sum()), images=len(finite))


def _worst_pixel(error: Float64Array) -> Float64Array:
    """The largest error of each image, [N]."""
    worst: Float64Array = np.abs(error).max(axis=(1, 2, 3))
    return worst


def _encoding_noise(images: UInt8Array) -> Float32Array:
    return np.full(images.shape, ENCODING_NOISE, np.float32)
