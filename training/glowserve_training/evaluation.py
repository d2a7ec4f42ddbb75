"""Evaluation of a model on images: likelihood, and reconstruction from latents.

log p(x) is estimated by the logarithm of the mean likelihood over M draws of dequantization noise. In expectation this
is a lower bound, tighter for larger M (Burda et al. 2016, theorem 1). With M = 1 it is the bound of uniform
(Theis et al. 2016, section 3.1) or variational dequantization (Ho et al. 2019, section 3.1).

Shapes: N images, H W C, D = H * W * C, L levels, M draws.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from tqdm import tqdm

from glowserve.images import UInt8Array
from glowserve.likelihood import bits_per_dim
from glowserve.mismatch import mismatched_values
from glowserve_training import quantization
from glowserve_training.data import evaluation_batches
from glowserve_training.dequantization import Dequantized
from glowserve_training.model import Glow

Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]

# The noise depends on the batch size: this one reproduces the figures in the checkpoint.
_BATCH = 64
# The noise of encoding: the center of every bin or, with variational dequantization, the learned image of the center.
_CENTER = 0.5


@dataclass(frozen=True)
class ImageTerms:
    """The terms of log-likelihoods, in nats, by level; level 1 is nearest to the pixels."""

    log_prior: Float64Array
    """The log-density of each level's latents, [N, L]."""

    log_det: Float64Array
    """Each level's log-determinants that depend on the image, [N, L]."""

    constant: float
    """The sum of the terms that are the same for every image."""

    def total(self) -> Float64Array:
        """The log-likelihoods, [N]."""
        log_likelihood: Float64Array = self.log_prior.sum(axis=1) + self.log_det.sum(axis=1) + self.constant
        return log_likelihood


@dataclass(frozen=True)
class Decoded:
    """Images decoded from latents."""

    image: UInt8Array
    """[N, H, W, C]."""

    pixels: Float32Array
    """Pixel values before rounding and clipping, in bins, [N, H, W, C]."""


class Evaluated(Protocol):
    """A model that can be evaluated, in PyTorch or as ONNX graphs."""

    @property
    def n_bits(self) -> int:
        """Bits of each pixel value that the model sees."""

    def terms(self, images: UInt8Array, noise: Float32Array) -> ImageTerms:
        """The log-likelihoods of images, uint8 [N, H, W, C], with noise in [0, 1) of the same shape."""

    def dequantize(self, images: UInt8Array, noise: Float32Array) -> Float32Array:
        """The flow's input, in bins, [N, H, W, C]: a value in bin q lies in [q, q + 1)."""

    def encode(self, images: UInt8Array, noise: Float32Array) -> Float32Array:
        """The latents, [N, D], of images and noise as in `terms`."""

    def decode(self, latent: Float32Array) -> Decoded:
        """The images of latents [N, D]."""


@dataclass(frozen=True, kw_only=True)
class LevelBits:
    """A level's part of bits/dim: means over images of its terms, with the first draw of noise."""

    level: int
    """1 is nearest to the pixels."""

    log_prior_bits_per_dim: float
    """From the log-density of the level's latents."""

    log_det_bits_per_dim: float
    """From the level's log-determinants that depend on the image."""


@dataclass(frozen=True, kw_only=True)
class Likelihood:
    """How likely images are under a model."""

    images: int
    """N."""

    importance_samples: int
    """Draws of noise for each image, M."""

    bits_per_dim: float
    """The mean over images; infinite if an image has no finite likelihood."""

    standard_error: float
    """Standard error of that mean; NaN if the mean is infinite, or over one image."""

    levels: tuple[LevelBits, ...]
    """Level 1 first. Their sum plus the constant is the mean with the first draw of noise."""

    constant_bits_per_dim: float
    """The part that is the same for every image."""

    non_finite: int
    """Images with a draw whose likelihood is not finite; their bits/dim are infinite."""

    def first_draw_bits_per_dim(self) -> float:
        """The sum of the levels and the constant: bits/dim with M = 1."""
        terms = (level.log_prior_bits_per_dim + level.log_det_bits_per_dim for level in self.levels)
        return sum(terms) + self.constant_bits_per_dim


@dataclass(frozen=True, kw_only=True)
class RoundTrip:
    """How well images are reconstructed from their latents, encoded with noise 0.5."""

    images_exact: int
    """Images whose every pixel value is reconstructed in its bin."""

    values_changed: int
    """Pixel values, of N * D, that are reconstructed in another bin."""

    largest_error: float
    """The largest difference between an encoded value and its reconstruction before rounding, in bins. Uniform
    dequantization encodes the bin's center, 0.5 from the borders."""


@dataclass(frozen=True, kw_only=True)
class Evaluation(Likelihood):
    """Likelihood and reconstruction."""

    round_trip: RoundTrip


def evaluate(model: Evaluated, images: UInt8Array, *, importance_samples: int = 1) -> Evaluation:
    """Evaluates a model on images.

    Args:
        model: the model.
        images: uint8 [N, H, W, C].
        importance_samples: M, draws of noise for each image. The noise depends only on the draw and the image's index.

    Raises:
        ValueError: there are no images, or no draws.
    """
    likelihood = measure_likelihood(model, images, importance_samples=importance_samples)
    return Evaluation(**vars(likelihood), round_trip=measure_round_trip(model, images))


def measure_likelihood(model: Evaluated, images: UInt8Array, *, importance_samples: int = 1) -> Likelihood:
    """The likelihood alone; arguments and errors are those of `evaluate`."""
    if importance_samples < 1:
        raise ValueError(f"importance_samples is {importance_samples}; it must be 1 or more")
    if not len(images):
        raise ValueError("images is empty; it must hold 1 or more")
    with (
        np.errstate(invalid="ignore", over="ignore"),  # values that are not finite are counted
        tqdm(
            total=importance_samples * len(images), desc="scoring", unit="", disable=None, leave=False
        ) as bar,
    ):
        first = _draw(model, images, 0, bar)
        others = (_draw(model, images, draw, bar).total() for draw in range(1, importance_samples))
        return _summary(first, np.stack([first.total(), *others]), images[0].size)


def measure_round_trip(model: Evaluated, images: UInt8Array) -> RoundTrip:
    """The reconstruction alone, of images, uint8 [N, H, W, C]."""
    exact, changed, largest = 0, 0, np.float32(0)
    with (
        np.errstate(invalid="ignore", over="ignore"),
        tqdm(total=len(images), desc="encoding and decoding", unit="", disable=None, leave=False) as bar,
    ):
        for first in range(0, len(images), _BATCH):
            part = images[first : first + _BATCH]
            noise = np.full(part.shape, _CENTER, np.float32)
            decoded = model.decode(model.encode(part, noise))
            mismatched = mismatched_values(part, decoded, model.n_bits)
            changed += int(mismatched.sum())
            exact += int((mismatched == 0).sum())
            error = np.abs(decoded.pixels - model.dequantize(part, noise))
            largest = np.maximum(largest, error.max())  # NaN stays NaN
            bar.update(len(part))
    return RoundTrip(images_exact=exact, values_changed=changed, largest_error=float(largest))


def _draw(model: Evaluated, images: UInt8Array, draw: int, bar: tqdm[None]) -> ImageTerms:
    """The terms of all images, [N, L], with one draw of noise."""
    parts = []
    for part, noise in evaluation_batches(images, _BATCH, draw=draw):
        parts.append(model.terms(part.numpy(), noise.numpy()))
        bar.update(len(part))
    return ImageTerms(
        np.concatenate([part.log_prior for part in parts]),
        np.concatenate([part.log_det for part in parts]),
        parts[0].constant,
    )


def _summary(first: ImageTerms, draws: Float64Array, dimensions: int) -> Likelihood:
    """Summarizes the terms of the first draw and the log-likelihoods of all draws, [M, N]."""
    m, n = draws.shape
    finite = np.isfinite(draws).all(axis=0)
    log_likelihood = np.where(finite, np.logaddexp.reduce(draws, axis=0) - math.log(m), -np.inf)
    bits = bits_per_dim(log_likelihood, dimensions)
    priors, log_dets = (
        bits_per_dim(term.mean(axis=0), dimensions).tolist() for term in (first.log_prior, first.log_det)
    )
    return Likelihood(
        images=n,
        importance_samples=m,
        bits_per_dim=float(bits.mean()),
        standard_error=float(bits.std(ddof=1) / math.sqrt(n)) if n > 1 else math.nan,
        levels=tuple(
            LevelBits(level=level, log_prior_bits_per_dim=prior, log_det_bits_per_dim=log_det)
            for level, (prior, log_det) in enumerate(zip(priors, log_dets, strict=True), start=1)
        ),
        constant_bits_per_dim=bits_per_dim(first.constant, dimensions),
        non_finite=n - int(finite.sum()),
    )


class EvaluatedGlow:
    """A PyTorch model, evaluated on its device and in its precision.

    Args:
        model: in evaluation mode.
    """

    def __init__(self, model: Glow) -> None:
        self._model = model

    @property
    def n_bits(self) -> int:
        """See `Evaluated`."""
        return self._model.config.n_bits

    def terms(self, images: UInt8Array, noise: Float32Array) -> ImageTerms:
        """See `Evaluated`."""
        with torch.no_grad(), _full_float32():
            terms = self._model.terms(self._tensor(images), self._float_tensor(noise))
        return ImageTerms(_float64(terms.log_prior), _float64(terms.log_det), float(terms.constant))

    def classify(self, images: UInt8Array) -> Int64Array:
        """The most probable class of each image, uint8 [N, H, W, C], under a class-conditional model, [N]."""
        found = []
        for part, noise in evaluation_batches(images, _BATCH):
            with torch.no_grad(), _full_float32():
                posterior = self._model.log_posterior(
                    self._tensor(part.numpy()), self._float_tensor(noise.numpy())
                )
            found.append(posterior.argmax(1).cpu().numpy())
        return np.concatenate(found)

    def dequantize(self, images: UInt8Array, noise: Float32Array) -> Float32Array:
        """See `Evaluated`."""
        return _float32(self._dequantized(images, noise).pixels())

    def encode(self, images: UInt8Array, noise: Float32Array) -> Float32Array:
        """See `Evaluated`."""
        dequantized = self._dequantized(images, noise)
        with torch.no_grad(), _full_float32():
            latent, _ = self._model(self._model.preprocess(dequantized)[0])
        return np.asarray(latent.float().cpu().numpy())

    def decode(self, latent: Float32Array) -> Decoded:
        """See `Evaluated`."""
        with torch.no_grad(), _full_float32():
            pixels = self._model.pixels(self._float_tensor(latent))
        return Decoded(quantization.quantize(pixels, self.n_bits).cpu().numpy(), _float32(pixels))

    def _dequantized(self, images: UInt8Array, noise: Float32Array) -> Dequantized:
        with torch.no_grad(), _full_float32():
            return self._model.dequantize(self._tensor(images), self._float_tensor(noise))

    def _tensor(self, array: UInt8Array | Float32Array) -> Tensor:
        return torch.from_numpy(array).to(self._parameter().device)

    def _float_tensor(self, array: Float32Array) -> Tensor:
        return self._tensor(array).to(self._parameter().dtype)

    def _parameter(self) -> Tensor:
        return next(self._model.parameters())


def _full_float32() -> AbstractContextManager[None]:
    """Turns off TF32, which cuDNN's convolutions use by default: its mantissa is too short for a likelihood."""
    return torch.backends.cudnn.flags(enabled=True, allow_tf32=False)


def _float32(tensor: Tensor) -> Float32Array:
    return np.asarray(tensor.float().cpu().numpy())


def _float64(tensor: Tensor) -> Float64Array:
    return np.asarray(tensor.double().cpu().numpy())
