"""The forward graph in ONNX Runtime, for the servers in this folder.

Shapes: N images, H W C.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime


class Graph:
    """Scores images.

    Args:
        path: forward.onnx.
        threads: CPU threads in one run.
    """

    def __init__(self, path: Path, threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self._shape = self._session.get_inputs()[0].shape[1:]

    def score(self, images: Sequence[bytes]) -> list[float]:
        """Log-likelihoods in nats of N images, each the bytes of uint8 [H, W, C].

        The noise is 0.5 everywhere, which favours these servers: drawing it from a seed takes longer.
        """
        pixels = np.frombuffer(b"".join(images), np.uint8).reshape(-1, *self._shape)
        noise = np.full(pixels.shape, 0.5, np.float32)
        scores: list[float] = self._session.run(["log_likelihood"], {"image": pixels, "noise": noise})[
            0
        ].tolist()
        return scores
