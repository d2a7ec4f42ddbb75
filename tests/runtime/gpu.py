"""For tests on a GPU: which of them can run here, and how exact their results are."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest

from glowserve.images import UInt8Array
from glowserve.runtime.config import bucket_sizes
from glowserve.runtime.ort import onnxruntime
from glowserve.runtime.sessions import CUDA

SIZES = bucket_sizes(32)
"""The sizes of the buffers on a GPU."""

TOLERANCE = 1e-5
"""Relative, of log-likelihoods: on a GPU, batches of different sizes may run different kernels."""


def _has_driver() -> bool:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


without_gpu = pytest.mark.skipif(_has_driver(), reason="this machine has a GPU's driver")
with_gpu_wheel = pytest.mark.skipif(
    CUDA not in onnxruntime.get_available_providers(), reason="onnxruntime has no CUDA; make test-gpu-wheel"
)


def assert_nearly_equal(images: UInt8Array, others: UInt8Array) -> None:
    """Checks that at most one value in 10,000, or one of fewer, differs, and by one level of 4 bits."""
    difference = np.abs(images.astype(int) - others)
    assert difference.max() <= 17
    assert np.count_nonzero(difference) <= max(1, difference.size // 10_000)
