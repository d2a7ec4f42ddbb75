"""A session with buffers on its device, made once for each batch size: nothing is allocated there for a call.

On CUDA each size's work is captured as a graph besides, and a run is one launch in place of a thousand.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import onnxruntime

from glowserve.runtime.gpu_turns import TURNS

Array = npt.NDArray[Any]
T = TypeVar("T")

_TYPES = {"tensor(uint8)": np.uint8, "tensor(float)": np.float32}
_NO_GRAPH = "-1"


class BoundSession:
    """Runs a session as its own `run` does. Calls from several threads take turns.

    All runs are of one thread: ONNX Runtime replays a graph in the thread that has captured it.

    Args:
        session: whose inputs and outputs all have N rows.
        device: where the buffers are, "cuda" or "cpu".
        sizes: numbers of rows. A batch takes the smallest buffers that it fits into, and is filled up with zeros; one
            that is larger than all of them runs without.
        capture: whether the session captures graphs.
    """

    def __init__(self, session: Any, device: str, sizes: Sequence[int], *, capture: bool = False) -> None:
        self._session: Any = session
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="gpu")
        self._buffers: dict[int, _Buffers] = {}

        def make() -> None:
            with TURNS.use():
                self._buffers = {size: _Buffers(session, device, size) for size in sorted(sizes)}
            if capture:
                for buffers in self._buffers.values():
                    with TURNS.use():
                        buffers.execute()  # alone, the capture would hold up the others for what a first run loads
                    with TURNS.capture():
                        buffers.capture()

        self._in_thread(make)

    def run(self, names: Sequence[str], feeds: Mapping[str, Array]) -> list[Array]:
        """The outputs of these names, of inputs by name."""

        def run() -> list[Array]:
            rows = len(next(iter(feeds.values())))
            buffers = next((self._buffers[size] for size in self._buffers if size >= rows), None)
            with TURNS.use():
                if buffers:
                    return buffers.run(names, feeds, rows)
                outputs: list[Array] = self._session.run(names, feeds, _run_options(_NO_GRAPH))
                return outputs

        return self._in_thread(run)

    def close(self) -> None:
        """Gives the device's memory back, after what runs. It cannot run any more."""

        def free() -> None:
            with TURNS.use():
                self._buffers.clear()
                self._session = None

        self._in_thread(free)
        self._thread.shutdown()

    def _in_thread(self, function: Callable[[], T]) -> T:
        return self._thread.submit(function).result()


class _Buffers:
    """Those of one size."""

    def __init__(self, session: Any, device: str, size: int) -> None:
        def allocated(tensor: Any) -> Any:
            shape = [size, *tensor.shape[1:]]
            return onnxruntime.OrtValue.ortvalue_from_shape_and_type(shape, _TYPES[tensor.type], device, 0)

        self._session = session
        self._options = _run_options(_NO_GRAPH)
        self._graph = str(size)
        self._inputs = {tensor.name: allocated(tensor) for tensor in session.get_inputs()}
        self._outputs = {tensor.name: allocated(tensor) for tensor in session.get_outputs()}
        self._filled = {
            tensor.name: np.zeros((size, *tensor.shape[1:]), _TYPES[tensor.type])
            for tensor in session.get_inputs()
        }
        for name, filled in self._filled.items():
            self._inputs[name].update_inplace(filled)
        self._binding = session.io_binding()
        for name, value in self._inputs.items():
            self._binding.bind_ortvalue_input(name, value)
        for name, value in self._outputs.items():
            self._binding.bind_ortvalue_output(name, value)

    def capture(self) -> None:
        """Captures a run; from now on it is replayed."""
        self._options = _run_options(self._graph)
        self.execute()

    def execute(self) -> None:
        """Computes the outputs of the inputs, on the device."""
        self._session.run_with_iobinding(self._binding, self._options)

    def run(self, names: Sequence[str], feeds: Mapping[str, Array], rows: int) -> list[Array]:
        for name, filled in self._filled.items():
            # `update_inplace` does not look at the type of what it copies.
            np.copyto(filled[:rows], feeds[name], casting="equiv")
            filled[rows:] = 0
            self._inputs[name].update_inplace(filled)
        self.execute()
        # On the CPU, `numpy` is the buffer itself.
        return [self._outputs[name].numpy()[:rows].copy() for name in names]


def _run_options(graph: str) -> Any:
    """For a run of the graph of this number, which is captured by the first."""
    options = onnxruntime.RunOptions()
    options.add_run_config_entry("gpu_graph_id", graph)
    return options
