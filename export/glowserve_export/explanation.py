"""Measures where held-out images are how likely: what explanations of other images are compared with."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from glowserve.images import UInt8Array
from glowserve.runtime.engine import Engine, Float32Array
from glowserve.runtime.explanation import SUM_BOUND, Places, measure_places, sum_error, write_places
from glowserve.runtime.randomness import DEFAULT_SEED, dequantization_noise
from glowserve.runtime.repository import EXPLAIN, PLACES, Bundle
from glowserve_export import workload
from glowserve_export.errors import VerificationError
from glowserve_export.publication import add_file

# One image has no spread.
_FEWEST = 2


def add_places(
    bundle: Bundle, engine: Engine, images: UInt8Array, batch_size: int, say: Callable[[str], None]
) -> None:
    """Writes what explanations are compared with; nothing if there is no image that another could differ from.

    Args:
        bundle: the bundle, which is not published yet.
        engine: runs it.
        images: held-out images, uint8 [N, H, W, C]. Of a large model it takes 100 and more of them.
        batch_size: the number of images in one run.
        say: called with a line of text.

    Raises:
        VerificationError: see `measure`.
    """
    if len(images) < _FEWEST:
        say(f"warning: explanations need {_FEWEST} validation images, and there are {len(images)}")
        return
    some = images[: workload.percentile_images(bundle.manifest.files[0].operations, len(images))]
    say(f"measuring the log-likelihood by place on {len(some)} of {len(images)} validation images")
    add_file(bundle, PLACES, write_places(measure(engine, some, batch_size)))


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
