"""A session with buffers on its device, made once for each batch size: nothing is allocated there for a call."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

Array = npt.NDArray[Any]

_TYPES = {"tensor(uint8)": np.uint8, "tensor(float)": np.float32}


class BoundSession:
    """Runs a session as its own `run` does. Calls from several threads take turns.

    Args:
        session: whose inputs and outputs all have N rows.
        device: where the buffers are, "cuda" or "cpu".
        sizes: numbers of rows. A batch takes the smallest buffers that it fits into, and is filled up with zeros; one
            that is larger than all of them runs without.
    """

    def __init__(self, session: Any, device: str, sizes: Sequence[int]) -> None:
        self._session = session
        self._lock = threading.Lock()
        self._buffers = {size: _Buffers(session, device, size) for size in sorted(sizes)}

    def run(self, names: Sequence[str], feeds: Mapping[str, Array]) -> list[Array]:
        """The outputs of these names, of inputs by name."""
        rows = len(next(iter(feeds.values())))
        size = next((size for size in self._buffers if size >= rows), None)
        if size is None:
            outputs: list[Array] = self._session.run(names, feeds)
            return outputs
        with self._lock:
            return self._buffers[size].run(names, feeds, rows)


class _Buffers:
    """Those of one size."""

    def __init__(self, session: Any, device: str, size: int) -> None:
        def allocated(tensor: Any) -> Any:
            shape = [size, *tensor.shape[1:]]
            return onnxruntime.OrtValue.ortvalue_from_shape_and_type(shape, _TYPES[tensor.type], device, 0)

        self._session = session
        self._inputs = {tensor.name: allocated(tensor) for tensor in session.get_inputs()}
        self._outputs = {tensor.name: allocated(tensor) for tensor in session.get_outputs()}
        self._filled = {
            tensor.name: np.zeros((size, *tensor.shape[1:]), _TYPES[tensor.type])
            for tensor in session.get_inputs()
        }
        self._binding = session.io_binding()
        for name, value in self._inputs.items():
            self._binding.bind_ortvalue_input(name, value)
        for name, value in self._outputs.items():
            self._binding.bind_ortvalue_output(name, value)

    def run(self, names: Sequence[str], feeds: Mapping[str, Array], rows: int) -> list[Array]:
        for name, filled in self._filled.items():
            # `update_inplace` does not look at the type of what it copies.
            np.copyto(filled[:rows], feeds[name], casting="equiv")
            filled[rows:] = 0
            self._inputs[name].update_inplace(filled)
        self._session.run_with_iobinding(self._binding)
        # On the CPU, `numpy` is the buffer itself.
        return [self._outputs[name].numpy()[:rows].copy() for name in names]
