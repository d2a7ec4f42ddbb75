"""Which tests of a GPU this machine and this onnxruntime can run."""

from __future__ import annotations

import ctypes

import onnxruntime
import pytest

from glowserve.runtime.sessions import CUDA


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
