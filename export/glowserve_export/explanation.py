"""Measures where held-out images are how likely: what explanations of other images are compared with."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from glowserve.images import UInt8Array
from glowserve.runtime.engine import Engine, Float32Array
from glowserve.runtime.explanation import SUM_BOUND, Places, measure_places, sum_error
from glowserve.runtime.randomness import DEFAULT_SEED, dequantization_noise
from glowserve.runtime.repository import EXPLAIN
from glowserve_export import workload
from glowserve_export.errors import VerificationError


def measure(engine: Engine, images: UInt8Array, batch_size: int) -> Places:
    """The places of a model on held-out images.

    Args:
        engine: runs the bundle, before it is published.
        images: uint8 [N, H, W, C], N at least 2.
        batch_size: the number of images in one run.

    Raises:
        VerificationError: an image has no finite log-likelihood, or its terms do not add up to it.
    """
    return measure_places(_terms(engine, images, batch_size))


def _terms(engine: Engine, images: UInt8Array, batch_size: int) -> Iterator[Float32Array]:
    for batch in workload.batches(len(images), batch_size, "scoring by place"):
        noise = dequantization_noise(DEFAULT_SEED, images[batch])
        terms = engine.explain(images[batch], noise)
        if not np.isfinite(terms).all():
            raise VerificationError(
                f"{EXPLAIN} is not finite for a validation image; the model diverged on it: export an earlier "
                "checkpoint, or train with a lower learning rate. Nothing was written"
            )
        if not batch.start:  # the rest would take as long again, and show the same
            _check_sum(engine, images[batch], noise, terms)
        yield terms


def _check_sum(engine: Engine, images: UInt8Array, noise: Float32Array, terms: Float32Array) -> None:
    error = sum_error(terms, engine.forward(images, noise).log_likelihood)
    if not error.max() <= SUM_BOUND:
        raise VerificationError(
            f"log-likelihood by place, relative error of its sum is {error.max():.3g} and must be at most "
            f"{SUM_BOUND:g}. Nothing was written"
        )
