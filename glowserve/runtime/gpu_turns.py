"""A lock for the GPU: any number of threads use it at once, or one thread captures a CUDA graph.

ONNX Runtime captures CUDA graphs in CUDA's global mode. During a capture, a call of another thread that may block in
the driver, such as an allocation of memory, fails, and makes the capture fail.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

# Batches take milliseconds. A batch that takes this long hangs, and captures must not wait for it.
_PATIENCE_SECONDS = 30.0


class Turns:
    """A lock that threads share to use the GPU, and hold alone to capture a CUDA graph.

    Args:
        patience: how many seconds a capture waits for the threads that use the GPU.
    """

    def __init__(self, patience: float = _PATIENCE_SECONDS) -> None:
        self._patience = patience
        self._condition = threading.Condition()
        self._users = 0
        self._capturing = False

    @contextmanager
    def use(self) -> Iterator[None]:
        """Waits until no thread captures, and keeps captures waiting. A thread that holds the lock must not call it."""
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
        """Waits until no other thread uses or captures, and keeps later threads waiting.

        Raises:
            TimeoutError: another thread has used the GPU for longer than the patience.
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
"""The lock of this process."""
