"""Drift of real images: a model's own samples are calibration and controls, the same mildly blurred are the change.

An image is the odder the further its bits/dim are from the median of the calibration images.
"""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageFilter

import glowserve
from glowserve.drift import DriftDetector, Float64Array
from glowserve.images import UInt8Array

N, CONTROLS, WITHIN = 400, 20, 500


@pytest.fixture(scope="module")
def samples(embedded: glowserve.Client) -> UInt8Array:
    """Of the small model of digits, [CONTROLS + 1, WITHIN, H, W, C], N of the first for calibration."""
    images = embedded.sample((CONTROLS + 2) * WITHIN, seed=1).images
    return images[: (CONTROLS + 1) * WITHIN].reshape(CONTROLS + 1, WITHIN, *images.shape[1:])


class Monitor:
    """A detector whose calibration images are samples."""

    def __init__(self, model: glowserve.Client, calibration: UInt8Array) -> None:
        self._model = model
        bits = model.score(calibration).bits_per_dim
        self._median = float(np.median(bits))
        self._calibration = np.sort(abs(bits - self._median))
        self.detector = DriftDetector(self._calibration)

    def alarm(self, images: UInt8Array) -> bool:
        """Whether the images raise an alarm."""
        oddness: Float64Array = abs(self._model.score(images).bits_per_dim - self._median)
        n = len(self._calibration)
        return self.detector.update((1 + n - np.searchsorted(self._calibration, oddness)) / (n + 1))


def blurred(images: UInt8Array, radius: float) -> UInt8Array:
    return np.stack(
        [
            np.asarray(Image.fromarray(image[:, :, 0]).filter(ImageFilter.GaussianBlur(radius)))[:, :, None]
            for image in images
        ]
    )


def test_twenty_controls_of_fresh_samples_raise_no_alarm(
    embedded: glowserve.Client, samples: UInt8Array
) -> None:
    monitor = Monitor(embedded, samples[0][:N])
    assert not any(monitor.alarm(control) for control in samples[1:])


def test_mildly_blurred_samples_raise_an_alarm_within_500(
    embedded: glowserve.Client, samples: UInt8Array
) -> None:
    for control in samples[1:4]:
        assert Monitor(embedded, samples[0][:N]).alarm(blurred(control, 0.5))
