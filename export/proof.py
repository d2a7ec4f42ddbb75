"""The proof of a bundle: its graphs, in the engine that will serve them, against PyTorch in float64.

Shapes: N images, H W C, D = H * W * C. A latent is encoded with noise 0.5, the middle of every bin.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from export.baked import BakedGlow, condition_number, inversion_residual
from export.errors import ProofError
from export.frontend import CONDITION_LIMIT
from export.trace import diverging_layer_forward, diverging_layer_reverse
from glowserve.images import UInt8Array
from glowserve.v1 import manifest_pb2
from service.engine import Engine
from service.randomness import dequantization_noise, latents
from service.repository import FORWARD, Bundle
from service.scoring import DEFAULT_SEED, ENCODING_NOISE, mismatched_values
from training.model import Glow

# |difference| / |float64 value| of a log-likelihood. Rounding alone gives about 1e-6.
LOG_LIKELIHOOD_BOUND = 1e-5
# Values of held-out images that encoding and decoding may change: it is lossless.
ROUND_TRIP_BOUND = 0
# Bins by which a decoded value may differ from float64; at half a bin it would be another grey value.
DECODE_BOUND = 0.1
# Entries of |W W^-1 - I| in float32; more than this and the two graphs are not each other's inverse.
RESIDUAL_BOUND = 1e-2

# Held-out images that are compared: float64 is slow, and errors hardly differ between images.
_IMAGES = 128
_BATCH = 32
_SAMPLES = 32
# Where rounding adds up over all layers.
_NO_LAYER = "no single one"


@dataclass(frozen=True)
class _Measured:
    """A figure, and how to find the layer to blame when it misses its bound."""

    name: str
    value: float
    bound: float | None = None
    layer: str = ""
    find_layer: Callable[[], str] | None = None


def prove(
    model: Glow, glow: BakedGlow, bundle: Bundle, engine: Engine, images: UInt8Array
) -> list[manifest_pb2.Check]:
    """Measures a bundle on held-out images.

    Args:
        model: the model that was exported.
        glow: what it was baked into.
        bundle: the bundle, not yet published.
        engine: the bundle's.
        images: uint8 [N, H, W, C]; at most 128 are used.

    Returns:
        Every figure, with its bound if it has one.

    Raises:
        ProofError: a figure misses its bound.
    """
    images = images[:_IMAGES]
    model = _in_float64(model)
    checks = []
    for measured in [
        *_matrices(glow),
        *_log_likelihood(model, glow, bundle, engine, images),
        *_round_trip(model, glow, bundle, engine, images),
        *_decoding(model, glow, bundle, engine, images),
    ]:
        # "not <=" and not ">": a figure that is NaN must not pass.
        if measured.bound is not None and not measured.value <= measured.bound:
            layer = measured.find_layer() if measured.find_layer else measured.layer
            raise ProofError(
                f"{measured.name} is {measured.value:.3g} and must be at most {measured.bound:g}; the layer to look "
                f"at is {layer}. Nothing was written"
            )
        checks.append(manifest_pb2.Check(name=measured.name, value=measured.value, bound=measured.bound,
                                         layer=measured.layer))  # fmt: skip
    return checks


def _matrices(glow: BakedGlow) -> list[_Measured]:
    """The worst 1x1 convolution, actnorm included."""
    steps = dict(glow.named_steps())
    conditions = {name: condition_number(step.matrix) for name, step in steps.items()}
    residuals = {name: inversion_residual(step) for name, step in steps.items()}
    worst, worst_residual = _argmax(conditions), _argmax(residuals)
    return [
        _Measured("worst condition number", conditions[worst], CONDITION_LIMIT, worst),
        _Measured("worst |W W^-1 - I|", residuals[worst_residual], RESIDUAL_BOUND, worst_residual),
    ]


@torch.no_grad()
def _log_likelihood(
    model: Glow, glow: BakedGlow, bundle: Bundle, engine: Engine, images: UInt8Array
) -> list[_Measured]:
    noise = dequantization_noise(DEFAULT_SEED, images)
    ours = np.concatenate(
        [
            engine.forward(images[i : i + _BATCH], noise[i : i + _BATCH]).log_likelihood
            for i in _starts(images)
        ]
    )
    exact = np.concatenate(
        [
            model.log_prob(
                torch.from_numpy(images[i : i + _BATCH]), torch.from_numpy(noise[i : i + _BATCH]).double()
            ).numpy()
            for i in _starts(images)
        ]
    )
    error = np.abs(ours - exact)
    relative = float((error / np.abs(exact)).max())
    bits = float(error.max() / (glow.dimensions * np.log(2)))
    part, part_noise = images[:2], noise[:2]

    def find() -> str:
        return (
            diverging_layer_forward(model, bundle, part, part_noise) or f"the log-determinants of {FORWARD}"
        )

    return [
        _Measured("log-likelihood, relative error", relative, LOG_LIKELIHOOD_BOUND, find_layer=find),
        _Measured("log-likelihood, error in bits/dim", bits),
    ]


def _round_trip(
    model: Glow, glow: BakedGlow, bundle: Bundle, engine: Engine, images: UInt8Array
) -> list[_Measured]:
    wrong, farthest = 0, 0.0
    for i in _starts(images):
        part = images[i : i + _BATCH]
        decoded = engine.reverse(engine.forward(part, np.full(part.shape, ENCODING_NOISE, np.float32)).latent)
        wrong += int(mismatched_values(part, decoded.image, glow.n_bits).sum())
        middles = (part >> (8 - glow.n_bits)) + ENCODING_NOISE
        farthest = max(farthest, float(np.abs(decoded.pixels - middles).max()))
    part = images[:2]
    middle = np.full(part.shape, ENCODING_NOISE, np.float32)

    def find() -> str:
        latent = engine.forward(part, middle).latent
        forward = diverging_layer_forward(model, bundle, part, middle)
        reverse = diverging_layer_reverse(model, bundle, latent)
        return " or ".join(filter(None, (forward, reverse))) or _NO_LAYER

    return [
        _Measured("round trip, values changed", wrong, ROUND_TRIP_BOUND, find_layer=find),
        # 0.5 is the border of the bin.
        _Measured("round trip, farthest from the middle of the bin", farthest),
    ]


@torch.no_grad()
def _decoding(
    model: Glow, glow: BakedGlow, bundle: Bundle, engine: Engine, images: UInt8Array
) -> list[_Measured]:
    part = images[:_SAMPLES]
    encoded = engine.forward(part, np.full(part.shape, ENCODING_NOISE, np.float32)).latent
    drawn = latents(DEFAULT_SEED, 0, _SAMPLES, glow.dimensions)

    def error(latent: np.ndarray) -> float:
        exact, _ = model.inverse(torch.from_numpy(latent).double())
        pixels = (exact.permute(0, 2, 3, 1).numpy() + 0.5) * 2**glow.n_bits
        return float(np.abs(engine.reverse(latent).pixels - pixels).max())

    def find() -> str:
        return diverging_layer_reverse(model, bundle, encoded[:2]) or _NO_LAYER

    return [
        _Measured("decoding, error in bins", error(encoded), DECODE_BOUND, find_layer=find),
        _Measured("decoding samples at temperature 1, error in bins", error(drawn)),
    ]


def _in_float64(model: Glow) -> Glow:
    double = Glow(model.config).double().eval()
    double.load_state_dict(model.state_dict())
    return double


def _starts(images: UInt8Array) -> range:
    return range(0, len(images), _BATCH)


def _argmax(figures: dict[str, float]) -> str:
    return max(figures, key=figures.__getitem__)
