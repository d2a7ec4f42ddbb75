"""Where an image is likelier, and where less likely, than held-out images are at the same place.

explain.onnx divides a log-likelihood among the places of its image. explain.npy has the mean and the standard deviation
of each place among validation images, float32 [2, H, W] in NumPy's format. A deviation is the difference from that mean
in units of that standard deviation. It has two directions: an object that the model does not know is too unlikely, a
blurred patch too likely.

Shapes: N images, H W of an image.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from glowserve.images import UInt8Array
from glowserve.runtime.engine import Engine, Float32Array, missing_file
from glowserve.runtime.errors import BundleError, NotCalibratedError
from glowserve.runtime.randomness import DEFAULT_SEED, dequantization_noise
from glowserve.runtime.repository import EXPLAIN, PLACES, Bundle
from glowserve.scores import Scorer
from glowserve.scores.usual_parts import LEAST_IMAGES

SUM_BOUND = 1e-4
"""The permitted difference between a log-likelihood and the sum over its places, relative to the sum of their absolute
values. Rounding causes 1e-6, and a few values that low precision rounds to another step 1e-5."""

# Nats. A place whose terms differ by less from image to image counts as if they differed by that.
_LEAST_SPREAD = 1e-3


@dataclass(frozen=True)
class Places:
    """The log-likelihood of each place among held-out images."""

    mean: Float32Array
    """Nats, [H, W]."""

    spread: Float32Array
    """The standard deviation, in nats, [H, W]; positive."""

    def deviations(self, terms: Float32Array) -> Float32Array:
        """How far terms [N, H, W] lie from the mean, in units of the spread. Not a number where a term is none."""
        with np.errstate(invalid="ignore", over="ignore"):
            return (terms - self.mean) / self.spread


def measure_places(batches: Iterable[Float32Array]) -> Places:
    """The mean and the spread of terms, batch by batch.

    After Chan et al. 1979, "Updating Formulae and a Pairwise Algorithm for Computing Sample Variances", section 2.

    Args:
        batches: terms, [N, H, W] each, of two or more images in all.
    """
    n, mean, squares = 0, np.zeros(()), np.zeros(())  # squared differences from the mean
    for batch in batches:
        terms = batch.astype(np.float64)
        own, more = terms.mean(axis=0), n + len(terms)
        squares = squares + np.square(terms - own).sum(axis=0) + np.square(own - mean) * n * len(terms) / more
        mean = mean + (own - mean) * len(terms) / more
        n = more
    spread = np.sqrt(squares / (n - 1)).clip(min=_LEAST_SPREAD)
    return Places(mean.astype(np.float32), spread.astype(np.float32))


def write_places(places: Places) -> bytes:
    """The content of explain.npy."""
    file = io.BytesIO()
    np.save(file, np.stack([places.mean, places.spread]).astype("<f4"))
    return file.getvalue()


def read_places(bundle: Bundle) -> Places:
    """The places of a bundle.

    Raises:
        MissingFileError: the bundle has no such file.
        BundleError: the file is damaged, or makes no sense.
    """
    if not bundle.has(PLACES):
        raise missing_file(bundle, PLACES)
    data, (height, width, _) = bundle.read(PLACES), bundle.shape
    expected = write_places(Places(*np.zeros((2, height, width), np.float32)))
    values = 4 * 2 * height * width
    # The header is compared and not obeyed: one of a damaged file could ask for any amount of memory.
    if len(data) != len(expected) or data[:-values] != expected[:-values]:
        raise BundleError(
            f"bundle {bundle.path}: {PLACES} is no array of float32 [2, {height}, {width}]; export the model again"
        )
    mean, spread = np.frombuffer(data[-values:], "<f4").astype(np.float32).reshape(2, height, width)
    if not np.isfinite([mean, spread]).all() or not (spread > 0).all():
        raise BundleError(
            f"bundle {bundle.path}: {PLACES} has a mean that is not finite, or a spread that is not positive; export "
            "the model again"
        )
    return Places(mean, spread)


def check_explainable(bundle: Bundle, scorer: Scorer) -> None:
    """Checks that a bundle has what explanations compare images with. Reads no file.

    Args:
        bundle: the bundle.
        scorer: its scorer.

    Raises:
        MissingFileError: it was exported without the files that this needs.
        NotCalibratedError: it has too few calibration images.
    """
    for name in (EXPLAIN, PLACES):
        if not bundle.has(name):
            raise missing_file(bundle, name)
    images = 0 if scorer.calibration is None else len(scorer.calibration.images)
    if images < LEAST_IMAGES:
        manifest = bundle.manifest
        raise NotCalibratedError(
            f"{manifest.model} version {manifest.version} has {images} calibration images, of which explanations take "
            f"{LEAST_IMAGES} or more; `glowserve calibrate REPOSITORY/{manifest.model} --data DATA` writes a version "
            "that has them"
        )


def sum_error(terms: Float32Array, log_likelihood: Float32Array) -> npt.NDArray[np.float64]:
    """The error of the sums of terms [N, H, W] as `SUM_BOUND` limits it, [N]."""
    exact = terms.astype(np.float64)
    difference = exact.sum(axis=(1, 2)) - log_likelihood
    error: npt.NDArray[np.float64] = np.abs(difference) / np.abs(exact).sum(axis=(1, 2))
    return error


class Explainer:
    """Explains the log-likelihoods of one model. Threads may share it. The files are read when they are first needed.

    Args:
        bundle: the engine's bundle.
        engine: the engine.
    """

    def __init__(self, bundle: Bundle, engine: Engine) -> None:
        self._bundle, self._engine = bundle, engine
        self._places: Places | None = None
        self._opening = threading.Lock()

    def explain(self, images: UInt8Array, noise: Float32Array, *, wide: bool = False) -> Float32Array:
        """Where images are too unlikely (negative) and too likely (positive), float32 [N, H, W].

        A value is a place's deviation from the mean of held-out images in units of their standard deviation there. It
        is not a number where the log-likelihood of the place is none.

        Args:
            images: uint8 [N, H, W, C], of the model's shape.
            noise: that of the default seed, like that of the held-out images; float32 [N, H, W, C].
            wide: see `Engine.forward`.

        Raises:
            MissingFileError: the bundle was exported without the files that this needs.
            BundleError: one of them is damaged, or this device does not compute what was exported.
            DeviceError: the device can no longer be used.
        """
        return self.open().deviations(self._engine.explain(images, noise, wide=wide))

    def open(self) -> Places:
        """Reads both files, and compares the log-likelihood of the canary with the sum over its places.

        Raises:
            MissingFileError: see `explain`.
            BundleError: see `explain`.
        """
        with self._opening:
            if self._places is None:
                places = read_places(self._bundle)
                self._check_sum()
                self._places = places
            return self._places

    def _check_sum(self) -> None:
        bundle = self._bundle
        image = np.frombuffer(bundle.manifest.canary.image, np.uint8).reshape(1, *bundle.shape)
        noise = dequantization_noise(DEFAULT_SEED, image)
        nats = self._engine.forward(image, noise).log_likelihood
        terms = self._engine.explain(image, noise)
        if not sum_error(terms, nats)[0] <= SUM_BOUND:
            raise BundleError(
                f"bundle {bundle.path}: its canary has a log-likelihood of {nats[0]:.6g} nats, and the terms of "
                f"{EXPLAIN} add up to {terms.sum(dtype=np.float64):.6g}: export the model again"
            )
