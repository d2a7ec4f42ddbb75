"""Makes a bundle measurable by `glowserve_training.evaluation`, with the engine that also serves it.

Shapes: N images, H W C of an image, D = H * W * C.
"""

from __future__ import annotations

from contextlib import suppress
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from glowserve_training.data import DataConfig
from glowserve_training.evaluation import Decoded, ImageTerms

from glowserve.image_size import ImageSize
from glowserve.images import UInt8Array
from glowserve.likelihood import bits_per_dim
from glowserve.runtime.calibration import bundle_calibration
from glowserve.runtime.config import RuntimeConfig
from glowserve.runtime.engine import Engine, Float32Array
from glowserve.runtime.errors import BundleError
from glowserve.runtime.ort import onnxruntime
from glowserve.runtime.randomness import DEFAULT_SEED, dequantization_noise
from glowserve.runtime.repository import FORWARD, Bundle
from glowserve_export.preprocessing import DEQUANTIZED

COMPARED_IMAGES = 8
"""So many calibration images tell whether a bundle was calibrated on them.

An image that is none of 1,000 known ones has the score of one of them, by chance, in one case of five: all of eight
images have in one of 400,000. Where the order of the known ones is known, the first sixteen alone are compared.
"""
# The scores of one image differ by less than this between batches and processors.
_SAME_BITS_PER_DIM = 1e-4


class EvaluatedBundle:
    """A bundle to measure; see `glowserve_training.evaluation.Evaluated`.

    Args:
        bundle: the bundle.
        device: "auto", "cpu" or "cuda".

    Raises:
        glowserve.runtime.errors.GlowserveError: the bundle is damaged, or the device cannot be used.
    """

    def __init__(self, bundle: Bundle, *, device: str = "auto") -> None:
        self._bundle, self._manifest = bundle, bundle.manifest
        self._engine = Engine(bundle, RuntimeConfig(device=device))

    @property
    def engine(self) -> Engine:
        """Runs the bundle."""
        return self._engine

    def close(self) -> None:
        """Frees what the engine holds of a GPU."""
        self._engine.close()

    @property
    def n_bits(self) -> int:
        """See `glowserve_training.evaluation.Evaluated`."""
        return self._manifest.image.n_bits

    def terms(self, images: UInt8Array, noise: Float32Array) -> ImageTerms:
        """See `glowserve_training.evaluation.Evaluated`."""
        forward = self._engine.forward(images, noise)
        return ImageTerms(
            forward.log_prior.astype(np.float64),
            forward.log_det.astype(np.float64),
            self._manifest.log_det_constant,
        )

    def is_calibrated_on(self, images: UInt8Array) -> bool:
        """Whether the percentiles were computed from these images, uint8 [N, H, W, C], in this order.

        Only the first `COMPARED_IMAGES` are scored, and looked for among the scores of the calibration images.
        """
        first, known = images[:COMPARED_IMAGES], self._calibration_bits
        if not len(first):
            return False
        nats = self._engine.forward(first, dequantization_noise(DEFAULT_SEED, first)).log_likelihood
        bits = bits_per_dim(nats.astype(np.float64), first[0].size)
        return bool((np.abs(bits[:, None] - known).min(axis=1) < _SAME_BITS_PER_DIM).all())

    @cached_property
    def _calibration_bits(self) -> npt.NDArray[np.float64]:
        """bits/dim of the first few calibration images; of an old bundle, which does not tell their order, of all."""
        with suppress(BundleError):  # a damaged calibration can be renewed
            if (calibration := bundle_calibration(self._bundle)) is not None:
                first = calibration.images.log_likelihood[: 2 * COMPARED_IMAGES]  # some may be unreadable now
                return bits_per_dim(first, self._manifest.image.latent_size)
        return np.asarray(self._manifest.calibration.bits_per_dim)

    def dequantize(self, images: UInt8Array, noise: Float32Array) -> Float32Array:
        """See `glowserve_training.evaluation.Evaluated`; runs on the CPU."""
        (pixels,) = self._dequantization.run([DEQUANTIZED], {"image": images, "noise": noise})
        return np.asarray(pixels)

    @cached_property
    def _dequantization(self) -> Any:
        """A session of the nodes of forward.onnx up to the flow's input."""
        forward = onnx.shape_inference.infer_shapes(onnx.load_from_string(self._bundle.read(FORWARD)))
        head = onnx.utils.Extractor(forward).extract_model(["image", "noise"], [DEQUANTIZED])
        return onnxruntime.InferenceSession(head.SerializeToString(), providers=["CPUExecutionProvider"])

    def encode(self, images: UInt8Array, noise: Float32Array) -> Float32Array:
        """See `glowserve_training.evaluation.Evaluated`."""
        return self._engine.forward(images, noise).latent

    def decode(self, latent: Float32Array) -> Decoded:
        """See `glowserve_training.evaluation.Evaluated`."""
        reverse = self._engine.reverse(latent)
        return Decoded(reverse.image, reverse.pixels)


def training_data(bundle: Bundle) -> DataConfig:
    """The data that the bundle's model was trained on."""
    manifest = bundle.manifest
    return DataConfig(
        data=manifest.training.data,
        image_size=ImageSize(manifest.image.height, manifest.image.width),
        channels=manifest.image.channels,
        split_seed=manifest.training.split_seed,
        preparation=bundle.preparation,
    )
