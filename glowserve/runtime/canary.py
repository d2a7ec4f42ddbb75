"""The canary: a sample that was drawn and scored at export. Drawing and scoring it again checks an engine."""

from __future__ import annotations

import numpy as np

from glowserve.images import UInt8Array
from glowserve.runtime.engine import Engine, Float32Array
from glowserve.runtime.errors import BundleError
from glowserve.runtime.randomness import DEFAULT_SEED, dequantization_noise, latents
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
        nats = _log_likelihood(engine, drawn.image)
        if np.isfinite(drawn.pixels).all() and np.isfinite(nats):
            canary.image, canary.log_likelihood = drawn.image.tobytes(), nats
            return canary
    raise BundleError(
        "not even the mode of the model is finite: the training diverged; export an earlier checkpoint"
    )


def check_canary(engine: Engine, bundle: Bundle) -> None:
    """Draws and scores a bundle's canary again.

    Raises:
        BundleError: the sample or its log-likelihood differs from the one at export, or the bundle has no canary.
    """
    manifest, canary = bundle.manifest, bundle.manifest.canary
    if len(canary.image) != manifest.image.latent_size:
        raise BundleError(f"bundle {bundle.path}: it has no canary; export the model again")
    image = np.frombuffer(canary.image, np.uint8).reshape(1, *bundle.shape)
    precision = manifest.flow.precision or "fp32"
    nats = _log_likelihood(engine, image)
    error = abs(nats - canary.log_likelihood) / abs(canary.log_likelihood)
    if not error <= _RELATIVE_ERROR[precision]:
        raise BundleError(
            f"bundle {bundle.path}: its canary has a log-likelihood of {nats:.6g} nats here, and had "
            f"{canary.log_likelihood:.6g} at export: {_CONSEQUENCE}"
        )
    drawn = engine.reverse(_latent(canary, manifest.image.latent_size)).image
    difference = float(np.abs(drawn.astype(np.int64) - image).mean())
    if not difference <= _MEAN_ERROR[precision]:
        raise BundleError(
            f"bundle {bundle.path}: its canary, drawn again, differs by {difference:.3g} grey values on average from "
            f"the one at export: {_CONSEQUENCE}"
        )


def _latent(canary: Canary, size: int) -> Float32Array:
    return latents(canary.seed, 0, 1, size, canary.temperature)


def _log_likelihood(engine: Engine, image: UInt8Array) -> float:
    return float(engine.forward(image, dequantization_noise(DEFAULT_SEED, image)).log_likelihood[0])
