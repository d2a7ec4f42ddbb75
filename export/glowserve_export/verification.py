"""The proof of a bundle: its graphs, in the engine that will serve them, against the exact flow in float64.

Shapes: N images, H W C, D = H * W * C. A latent is encoded with noise 0.5: in the middle of every bin or, where
dequantization is learned, where it puts that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from glowserve.images import UInt8Array
from glowserve.likelihood import bits_per_dim
from glowserve.runtime.checks import mismatched_values
from glowserve.runtime.engine import Engine, Float32Array
from glowserve.runtime.randomness import DEFAULT_SEED, ENCODING_NOISE, dequantization_noise, latents
from glowserve.runtime.repository import FORWARD, Bundle
from glowserve.v1 import manifest_pb2
from glowserve_export.baked import BakedGlow, condition_number, inversion_residual
from glowserve_export.calibration import INT8_BOUND
from glowserve_export.divergence import diverging_layer_forward, diverging_layer_reverse
from glowserve_export.errors import ProofError
from glowserve_export.frontends.checks import CONDITION_LIMIT
from glowserve_export.out_of_distribution import unseen_images
from glowserve_export.reference import Exact

# |difference| / |float64 value| of a log-likelihood. Rounding alone gives about 1e-6.
LOG_LIKELIHOOD_BOUND = 1e-5
# Values of held-out images that encoding and decoding may change: it is lossless.
ROUND_TRIP_BOUND = 0
# Grey values, of 256, by which a decoded value may differ from float64.
DECODE_BOUND = 0.1
# Bits per dimension by which a log-likelihood may differ from float64.
BITS_PER_DIM_BOUND = 1e-3
# Of low precision, which is a density model of its own: bits per dimension that it may lose in the mean, and the
# share of values that encoding and decoding may change, since it is exact in exact arithmetic alone.
LOSS_BOUNDS = {"fp16": 1e-3, "int8": INT8_BOUND}
CHANGED_BOUNDS = {"fp16": 0.01, "int8": 0.5}
# Entries of |W W^-1 - I| in float32; more than this and the two graphs are not each other's inverse.
RESIDUAL_BOUND = 1e-2

# Held-out images that are compared: float64 is slow, and errors hardly differ between images.
_IMAGES = 128
_BATCH = 32
# Where rounding adds up over all layers.
_NO_LAYER = "no single one"
_NETWORKS = "the coupling networks"


def prove(
    exact: Exact, glow: BakedGlow, bundle: Bundle, engine: Engine, images: UInt8Array
) -> manifest_pb2.Verification:
    """Measures a bundle on held-out images.

    Args:
        exact: the flow, in float64.
        glow: what its graphs were written from.
        bundle: the bundle, not yet published.
        engine: the bundle's.
        images: uint8 [N, H, W, C]; at most 128 are used.

    Returns:
        Every figure, with its bound if it has one.

    Raises:
        ProofError: a figure misses its bound.
    """
    proof = _Proof(exact, glow, bundle, engine, images[:_IMAGES])
    verification = manifest_pb2.Verification(images=len(proof.images))
    exactly = (proof.log_likelihood, proof.round_trip, proof.decoding)
    nearly = (proof.loss, proof.changes)
    precision = bundle.manifest.flow.precision
    for figures in (proof.matrices, *(exactly if precision == "fp32" else nearly)):
        for figure in figures():
            verification.checks.append(figure.checked())
    verification.steps.extend(proof.steps())
    verification.unseen.extend(proof.unseen())
    return verification


@dataclass(frozen=True)
class _Figure:
    """Something measured, and how to find the layer to blame when it misses its bound."""

    name: str
    value: float
    bound: float | None = None
    layer: str = ""
    find_layer: Callable[[], str] | None = None

    def checked(self) -> manifest_pb2.Check:
        # "not <=" and not ">": a figure that is NaN must not pass.
        if self.bound is not None and not self.value <= self.bound:
            layer = self.find_layer() if self.find_layer else self.layer
            raise ProofError(
                f"{self.name} is {self.value:.3g} and must be at most {self.bound:g}; the layer to look at is {layer}. "
                "Nothing was written"
            )
        return manifest_pb2.Check(name=self.name, value=self.value, bound=self.bound, layer=self.layer)


@dataclass(frozen=True)
class _Proof:
    """What is compared; each method measures one thing."""

    exact: Exact
    glow: BakedGlow
    bundle: Bundle
    engine: Engine
    images: UInt8Array

    def matrices(self) -> list[_Figure]:
        """The worst of `steps`."""
        conditions = {step.step: step.condition_number for step in self.steps()}
        residuals = {step.step: step.residual for step in self.steps()}
        worst, worst_residual = _argmax(conditions), _argmax(residuals)
        return [
            _Figure("worst condition number", conditions[worst], CONDITION_LIMIT, worst),
            _Figure("worst |W W^-1 - I|", residuals[worst_residual], RESIDUAL_BOUND, worst_residual),
        ]

    def steps(self) -> list[manifest_pb2.StepProof]:
        """Every 1x1 convolution, actnorm included."""
        return [
            manifest_pb2.StepProof(
                step=name, condition_number=condition_number(step.matrix), residual=inversion_residual(step)
            )
            for name, step in self.glow.named_steps()
        ]

    def log_likelihood(self) -> list[_Figure]:
        """Against float64, with the noise of the default seed."""
        noise = dequantization_noise(DEFAULT_SEED, self.images)
        ours, exact = [], []
        for batch in self._batches():
            ours.append(self.engine.forward(self.images[batch], noise[batch]).log_likelihood)
            exact.append(self.exact.log_likelihood(self.images[batch], noise[batch]))
        expected = np.concatenate(exact)
        error = np.abs(np.concatenate(ours) - expected)

        def find() -> str:
            layer = diverging_layer_forward(self.exact, self.bundle, self.images[:2], noise[:2])
            return layer or f"the log-determinants of {FORWARD}"

        return [
            _Figure(
                "log-likelihood, relative error",
                float((error / np.abs(expected)).max()),
                LOG_LIKELIHOOD_BOUND,
                find_layer=find,
            ),
            _Figure(
                "log-likelihood, error in bits/dim",
                float(error.max() / (self.glow.dimensions * np.log(2))),
                BITS_PER_DIM_BOUND,
                find_layer=find,
            ),
        ]

    def loss(self) -> list[_Figure]:
        """Of low precision: its own bits per dimension, and what it lost against float64, with the same noise."""
        noise = dequantization_noise(DEFAULT_SEED, self.images)
        ours, exact = [], []
        for batch in self._batches():
            ours.append(self.engine.forward(self.images[batch], noise[batch]).log_likelihood)
            exact.append(self.exact.log_likelihood(self.images[batch], noise[batch]))
        bits = bits_per_dim(np.concatenate(ours), self.glow.dimensions)
        lost = bits - bits_per_dim(np.concatenate(exact), self.glow.dimensions)
        precision = self.bundle.manifest.flow.precision
        return [
            _Figure("bits/dim", float(bits.mean())),
            _Figure(
                f"bits/dim lost in {precision}", float(lost.mean()), LOSS_BOUNDS[precision], layer=_NETWORKS
            ),
            _Figure("bits/dim lost, worst image", float(lost.max())),
        ]

    def changes(self) -> list[_Figure]:
        """Of low precision: what encoding and decoding change, and what it draws."""
        wrong = np.concatenate(
            [
                mismatched_values(
                    self.images[batch], self.engine.reverse(self._encoded(batch)), self.glow.n_bits
                )
                for batch in self._batches()
            ]
        )
        drawn = self.engine.reverse(latents(DEFAULT_SEED, 0, _BATCH, self.glow.dimensions)).pixels
        finite = np.isfinite(drawn).reshape(len(drawn), -1).all(axis=1)
        precision = self.bundle.manifest.flow.precision
        return [
            _Figure(
                "round trip, share of values changed",
                float(wrong.sum() / self.images.size),
                CHANGED_BOUNDS[precision],
                layer=_NETWORKS,
            ),
            _Figure("round trip, share of images changed", float((wrong > 0).mean())),
            _Figure("samples at temperature 1, share not finite", float((~finite).mean())),
        ]

    def round_trip(self) -> list[_Figure]:
        """Pixels to latents to pixels."""
        wrong, farthest = 0, np.float32(0)
        for batch in self._batches():
            decoded = self.engine.reverse(self._encoded(batch))
            wrong += int(mismatched_values(self.images[batch], decoded, self.glow.n_bits).sum())
            middle = np.full(self.images[batch].shape, ENCODING_NOISE, np.float32)
            error = np.abs(decoded.pixels - self.exact.dequantized(self.images[batch], middle))
            farthest = np.maximum(farthest, error.max())  # NaN stays NaN

        def find() -> str:
            few = slice(2)
            middle = np.full(self.images[few].shape, ENCODING_NOISE, np.float32)
            forward = diverging_layer_forward(self.exact, self.bundle, self.images[few], middle)
            reverse = diverging_layer_reverse(self.exact, self.bundle, self._encoded(few))
            return " or ".join(filter(None, (forward, reverse))) or _NO_LAYER

        return [
            _Figure("round trip, values changed", wrong, ROUND_TRIP_BOUND, find_layer=find),
            # In bins; if dequantization is uniform, 0.5 is the border.
            _Figure("round trip, farthest from what was encoded", float(farthest)),
            # Noise near 0 or 1 lies within rounding of the next bin.
            _Figure("round trip with random noise, values changed", self._changed_with_random_noise()),
        ]

    def _changed_with_random_noise(self) -> int:
        noise, wrong = dequantization_noise(DEFAULT_SEED, self.images), 0
        for batch in self._batches():
            images = self.images[batch]
            decoded = self.engine.reverse(self.engine.forward(images, noise[batch]).latent)
            wrong += int(mismatched_values(images, decoded, self.glow.n_bits).sum())
        return wrong

    def unseen(self) -> list[manifest_pb2.UnseenProof]:
        """What becomes of images unlike the model's."""
        proofs = []
        for kind, images in unseen_images(self.images).items():
            forward = self.engine.forward(images, np.full(images.shape, ENCODING_NOISE, np.float32))
            finite = np.isfinite(forward.log_likelihood) & np.isfinite(forward.latent).all(axis=1)
            decoded = self.engine.reverse(forward.latent)
            returned = finite & (mismatched_values(images, decoded, self.glow.n_bits) == 0)
            proofs.append(
                manifest_pb2.UnseenProof(
                    kind=kind, images=len(images), finite=int(finite.sum()), returned=int(returned.sum())
                )
            )
        return proofs

    def decoding(self) -> list[_Figure]:
        """Latents to pixels, against float64."""
        encoded = self._encoded(slice(_BATCH))
        drawn = latents(DEFAULT_SEED, 0, _BATCH, self.glow.dimensions)

        def find() -> str:
            return diverging_layer_reverse(self.exact, self.bundle, encoded[:2]) or _NO_LAYER

        return [
            _Figure(
                "decoding, error in grey values", self._decoding_error(encoded), DECODE_BOUND, find_layer=find
            ),
            _Figure("decoding samples at temperature 1, error in grey values", self._decoding_error(drawn)),
        ]

    def _batches(self) -> list[slice]:
        return [slice(i, i + _BATCH) for i in range(0, len(self.images), _BATCH)]

    def _encoded(self, which: slice) -> Float32Array:
        images = self.images[which]
        return self.engine.forward(images, np.full(images.shape, ENCODING_NOISE, np.float32)).latent

    def _decoding_error(self, latent: Float32Array) -> float:
        greys = (self.engine.reverse(latent).pixels - self.exact.pixels(latent)) * 2 ** (8 - self.glow.n_bits)
        return float(np.abs(greys).max())


def _argmax(figures: dict[str, float]) -> str:
    return max(figures, key=figures.__getitem__)
