"""Whose turn it is on the GPU. It knows no ONNX Runtime.

ONNX Runtime captures a CUDA graph in CUDA's global mode: while it does, whatever another thread of the process asks of
the driver that may have to wait (memory, above all) fails, and the capture with it. So a capture goes on alone.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

# Batches take milliseconds. One that goes on for longer than this hangs, and nothing else shall wait for it.
_PATIENCE_SECONDS = 30.0


class Turns:
    """Many threads use the GPU at once, or one captures a graph.

    Args:
        patience: seconds that a capture waits for those who use the GPU.
    """

    def __init__(self, patience: float = _PATIENCE_SECONDS) -> None:
        self._patience = patience
        self._condition = threading.Condition()
        self._users = 0
        self._capturing = False

    @contextmanager
    def use(self) -> Iterator[None]:
        """Once no capture is going on. Not for a thread that captures or uses it already."""
        with self._condition:
            self._condition.wait_for(lambda: not self._capturing)
            self._users += 1
        try:
            yield
        finally:
            with self._condition:
                self._users -= 1
                self._condition.notify_all()

    @contextmanager
    def capture(self) -> Iterator[None]:
        """Once nobody uses it; who comes later waits until it is over.

        Raises:
            TimeoutError: somebody has used it for too long.
        """
        with self._condition:
            self._condition.wait_for(lambda: not self._capturing)
            self._capturing = True
        try:
            with self._condition:
                if not self._condition.wait_for(lambda: not self._users, self._patience):
                    raise TimeoutError(f"another run on the GPU has taken {self._patience:g} s: it hangs")
            yield
        finally:
            with self._condition:
                self._capturing = False
                self._condition.notify_all()


TURNS = Turns()
"""Those of this process."""
