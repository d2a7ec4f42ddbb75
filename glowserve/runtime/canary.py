"""The canary: a sample that was drawn and scored at export. Drawing and scoring it again checks an engine.

Shapes: N images, L levels.
"""

from __future__ import annotations

import numpy as np

from glowserve.images import UInt8Array
from glowserve.runtime.engine import Engine, Float32Array, Forward
from glowserve.runtime.errors import BundleError
from glowserve.runtime.randomness import DEFAULT_SEED, ENCODING_NOISE, dequantization_noise, latents
from glowserve.runtime.repository import Bundle
from glowserve.v1.manifest_pb2 import Canary

# Seeds and temperatures, in order. Not every sample of a barely trained model is finite; temperature 0 gives the mode.
_ATTEMPTS = [(seed, temperature) for temperature in (0.7, 0.5, 0.25) for seed in range(4)] + [(0, 0.0)]
# The permitted relative error of a log-likelihood by precision: processors and accelerators round differently.
_RELATIVE_ERROR = {"fp32": 1e-4, "fp16": 1e-3, "int8": 1e-2}
# The permitted mean difference of an image's values by precision, in grey values of 256.
_MEAN_ERROR = {"fp32": 0.1, "fp16": 1.0, "int8": 4.0}

_CONSEQUENCE = "this device or runtime does not compute what the export verified"


def draw_canary(engine: Engine, latent_size: int) -> Canary:
    """Draws a finite sample, and computes its log-likelihood.

    Args:
        engine: the model.
        latent_size: D.

    Raises:
        BundleError: not even the mode of the model is finite.
    """
    for seed, temperature in _ATTEMPTS:
        canary = Canary(seed=seed, temperature=temperature)
        drawn = engine.reverse(_latent(canary, latent_size))
        nats = float(_score(engine, drawn.image).log_likelihood[0])
        if np.isfinite(drawn.pixels).all() and np.isfinite(nats):
            canary.image, canary.log_likelihood = drawn.image.tobytes(), nats
            return canary
    raise BundleError(
        "not even the mode of the model is finite: the training diverged; export an earlier checkpoint"
    )


def check_canary(engine: Engine, bundle: Bundle) -> None:
    """Draws and scores a bundle's canary again.

    Raises:
        BundleError: the sample or its log-likelihood differs from the one at export, the log-likelihood is not the sum
            of its terms and the manifest's constant, or the bundle has no canary.
    """
    manifest, canary = bundle.manifest, bundle.manifest.canary
    if len(canary.image) != manifest.image.latent_size:
        raise BundleError(f"bundle {bundle.path}: it has no canary; export the model again")
    image = np.frombuffer(canary.image, np.uint8).reshape(1, *bundle.shape)
    precision = manifest.flow.precision or "fp32"
    scored = _score(engine, image)
    nats = float(scored.log_likelihood[0])
    if not abs(nats - canary.log_likelihood) <= _RELATIVE_ERROR[precision] * abs(canary.log_likelihood):
        raise BundleError(
            f"bundle {bundle.path}: its canary has a log-likelihood of {nats:.6g} nats here, and had "
            f"{canary.log_likelihood:.6g} at export: {_CONSEQUENCE}"
        )
    _check_constant(scored, bundle)
    drawn = engine.reverse(_latent(canary, manifest.image.latent_size)).image
    difference = float(np.abs(drawn.astype(np.int64) - image).mean())
    if not difference <= _MEAN_ERROR[precision]:
        raise BundleError(
            f"bundle {bundle.path}: its canary, drawn again, differs by {difference:.3g} grey values on average from "
            f"the one at export: {_CONSEQUENCE}"
        )


def _latent(canary: Canary, size: int) -> Float32Array:
    return latents(canary.seed, 0, 1, size, canary.temperature)


def _score(engine: Engine, image: UInt8Array) -> Forward:
    return engine.forward(image, dequantization_noise(DEFAULT_SEED, image))


def _check_constant(scored: Forward, bundle: Bundle) -> None:
    """Checks that the manifest's constant is the one in the graph."""
    constant = bundle.manifest.log_det_constant
    terms = np.concatenate(
        [scored.log_prior[0], scored.log_det[0], [constant]], dtype=np.float64
    )  # [2 L + 1]
    difference = abs(terms.sum() - scored.log_likelihood[0])
    if not difference <= _RELATIVE_ERROR["fp32"] * np.abs(terms).sum():
        raise BundleError(
            f"bundle {bundle.path}: the manifest's log_det_constant is {constant:.6g}, and with it the terms of a "
            f"log-likelihood of {scored.log_likelihood[0]:.6g} nats add up to {terms.sum():.6g}; export the model again"
        )


def check_n_bits(engine: Engine, bundle: Bundle) -> None:
    """Checks that the graphs have as many bins as the manifest says: the latent changes with the bin, and only then.

    Raises:
        BundleError: they have not.
    """
    n_bits = bundle.manifest.image.n_bits
    image = np.frombuffer(bundle.manifest.canary.image, np.uint8).reshape(1, *bundle.shape)
    bin_size = 1 << (8 - n_bits)
    noise = np.full(image.shape, ENCODING_NOISE, np.float32)
    # The image, one of the same bins, and one whose bins all differ from the image's in their lowest bit.
    latent, same, other = (
        engine.forward(image ^ np.uint8(bits), noise).latent for bits in (0, bin_size - 1, bin_size)
    )
    if not np.isfinite(latent).all():
        return
    if not np.allclose(same, latent) or np.array_equal(other, latent):
        raise BundleError(
            f"bundle {bundle.path}: the manifest's image.n_bits is {n_bits}, and the graphs do not divide a value into "
            f"2^{n_bits} bins; export the model again"
        )
