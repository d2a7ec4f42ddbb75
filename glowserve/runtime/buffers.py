"""A session with input and output buffers on its device, one set for each batch size: a run allocates nothing there.

On CUDA the work of each size is also captured as a CUDA graph, so that a run is one launch instead of a thousand.

Shapes: N rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from glowserve.runtime.gpu_turns import TURNS
from glowserve.runtime.ort import onnxruntime

Array = npt.NDArray[Any]
T = TypeVar("T")

_TYPES = {"tensor(uint8)": np.uint8, "tensor(float)": np.float32, "tensor(int64)": np.int64}
_NO_GRAPH = "-1"


class BoundSession:
    """Runs a session through its buffers, with the results of `session.run`. Threads may share it; runs do not overlap.

    Every run takes place in one thread of its own: ONNX Runtime replays a CUDA graph in the thread that captured it.

    Args:
        session: the session; all of its inputs and outputs have N rows.
        device: the device of the buffers, "cuda" or "cpu".
        sizes: the sizes of the buffers in rows. A batch uses the smallest buffers that hold it, filled up with zeros. A
            larger batch runs without buffers.
        capture: whether to capture CUDA graphs. The session must have been opened for that.
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
                        buffers.execute()  # a first run is slow, and a capture keeps other threads waiting
                    with TURNS.capture():
                        buffers.capture()

        self._in_thread(make)

    def run(self, names: Sequence[str], feeds: Mapping[str, Array]) -> list[Array]:
        """Runs the session.

        Args:
            names: the outputs to return.
            feeds: the inputs by name, with N rows each.

        Raises:
            TypeError: an input has another type than the session's.
        """

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
        """Frees the buffers and the session, after the current run. No run may follow."""

        def free() -> None:
            with TURNS.use():
                self._buffers.clear()
                self._session = None

        self._in_thread(free)
        self._thread.shutdown()

    def _in_thread(self, function: Callable[[], T]) -> T:
        return self._thread.submit(function).result()


class _Buffers:
    """The buffers of one size, bound to the session's inputs and outputs."""

    def __init__(self, session: Any, device: str, size: int) -> None:
        def allocate(tensor: Any) -> Any:
            shape = [size, *tensor.shape[1:]]
            return onnxruntime.OrtValue.ortvalue_from_shape_and_type(shape, _TYPES[tensor.type], device, 0)

        self._session = session
        self._options = _run_options(_NO_GRAPH)
        self._graph = str(size)
        self._inputs = {tensor.name: allocate(tensor) for tensor in session.get_inputs()}
        self._outputs = {tensor.name: allocate(tensor) for tensor in session.get_outputs()}
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
        """Captures a run as a CUDA graph, which later runs replay."""
        self._options = _run_options(self._graph)
        self.execute()

    def execute(self) -> None:
        """Runs the session on what the buffers hold."""
        self._session.run_with_iobinding(self._binding, self._options)

    def run(self, names: Sequence[str], feeds: Mapping[str, Array], rows: int) -> list[Array]:
        """Copies inputs of `rows` rows into the buffers, runs the session, and copies the named outputs."""
        for name, filled in self._filled.items():
            # `update_inplace` does not check the type.
            np.copyto(filled[:rows], feeds[name], casting="equiv")
            filled[rows:] = 0
            self._inputs[name].update_inplace(filled)
        self.execute()
        # On the CPU, `numpy` returns a view of the buffer.
        return [self._outputs[name].numpy()[:rows].copy() for name in names]


def _run_options(graph: str) -> Any:
    """Options of a run: the first run with a number captures the CUDA graph of that number, later runs replay it."""
    options = onnxruntime.RunOptions()
    options.add_run_config_entry("gpu_graph_id", graph)
    return options
