"""A session with buffers computes the same bits as a session without; on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from glowserve.images import UInt8Array
from glowserve.runtime.buffers import BoundSession
from glowserve.runtime.config import bucket_sizes
from glowserve.runtime.gpu_turns import Turns
from glowserve.runtime.ort import onnxruntime
from glowserve.runtime.randomness import dequantization_noise, latents
from glowserve.runtime.repository import FORWARD, REVERSE, Bundle

Array = np.ndarray
OUTPUTS = {FORWARD: ["log_likelihood", "latent", "log_prior", "log_det"], REVERSE: ["image", "pixels"]}


@pytest.fixture(scope="module")
def sessions(bundle: Bundle) -> dict[str, onnxruntime.InferenceSession]:
    """A session for each graph, with one thread and without buffers."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return {
        graph: onnxruntime.InferenceSession(bundle.read(graph), options, providers=["CPUExecutionProvider"])
        for graph in (FORWARD, REVERSE)
    }


@pytest.fixture(scope="module")
def bound(sessions: dict[str, onnxruntime.InferenceSession]) -> dict[str, BoundSession]:
    """The same sessions with buffers for up to 12 rows."""
    return {graph: BoundSession(session, "cpu", bucket_sizes(12)) for graph, session in sessions.items()}


def feeds(graph: str, digits: UInt8Array, first: int, rows: int) -> dict[str, Array]:
    """Inputs whose rows all differ."""
    if graph == REVERSE:
        return {"latent": latents(7, first, rows, 64)}
    images = digits[first : first + rows]
    return {"image": images, "noise": dequantization_noise(first, images)}


def assert_same(actual: list[Array], expected: list[Array]) -> None:
    for one, other in zip(actual, expected, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("graph", [FORWARD, REVERSE])
@pytest.mark.parametrize("rows", range(1, 14))
def test_a_batch_in_buffers_of_its_size_in_larger_buffers_and_without_buffers_gives_the_same_bits(
    bound: dict[str, BoundSession],
    sessions: dict[str, onnxruntime.InferenceSession],
    digits: UInt8Array,
    graph: str,
    rows: int,
) -> None:
    given = feeds(graph, digits, rows, rows)
    assert_same(bound[graph].run(OUTPUTS[graph], given), sessions[graph].run(OUTPUTS[graph], given))


def test_the_next_batch_does_not_change_a_result(bound: dict[str, BoundSession], digits: UInt8Array) -> None:
    first = bound[FORWARD].run(OUTPUTS[FORWARD], feeds(FORWARD, digits, 0, 4))
    before = [array.copy() for array in first]
    bound[FORWARD].run(OUTPUTS[FORWARD], feeds(FORWARD, digits, 50, 4))
    assert_same(first, before)


def test_a_smaller_batch_is_filled_up_with_zeros_and_not_with_rows_of_another(
    bound: dict[str, BoundSession], sessions: dict[str, onnxruntime.InferenceSession]
) -> None:
    lost = {"latent": np.full((8, 64), 3e38, np.float32)}
    bound[REVERSE].run(["pixels"], lost)
    filled = bound[REVERSE]._buffers[8]._filled["latent"]
    given = {"latent": latents(0, 0, 5, 64)}
    assert_same(bound[REVERSE].run(["pixels"], given), sessions[REVERSE].run(["pixels"], given))
    assert not filled[5:].any()


def test_threads_that_share_buffers_get_their_own_results(
    bound: dict[str, BoundSession],
    sessions: dict[str, onnxruntime.InferenceSession],
    digits: UInt8Array,
) -> None:
    batches = [feeds(FORWARD, digits, i, 1 + i % 9) for i in range(100)]
    expected = [sessions[FORWARD].run(OUTPUTS[FORWARD], batch) for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        actual = list(pool.map(lambda batch: bound[FORWARD].run(OUTPUTS[FORWARD], batch), batches * 3))
    for i, result in enumerate(actual):
        assert_same(result, expected[i % len(batches)])


def test_outputs_are_in_the_order_of_their_names(bound: dict[str, BoundSession], digits: UInt8Array) -> None:
    given = feeds(FORWARD, digits, 0, 3)
    latent, nats = bound[FORWARD].run(["latent", "log_likelihood"], given)
    assert (latent.shape, nats.shape) == ((3, 64), (3,))


@pytest.mark.parametrize("dtype", [np.float64, np.uint8, np.int32])
def test_an_array_of_another_type_is_refused(bound: dict[str, BoundSession], dtype: type) -> None:
    with pytest.raises(TypeError, match="Cannot cast"):
        bound[REVERSE].run(["pixels"], {"latent": np.zeros((2, 64), dtype)})


def test_each_size_runs_once_with_the_lock_shared_and_is_captured_with_the_lock_held_alone(
    sessions: dict[str, onnxruntime.InferenceSession], digits: UInt8Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    happened = list[str]()

    class Recorded(Turns):
        @contextmanager
        def use(self) -> Iterator[None]:
            happened.append("use")
            with super().use():
                yield

        @contextmanager
        def capture(self) -> Iterator[None]:
            happened.append("capture")
            with super().capture():
                yield

    class RecordedSession:
        """A session that records the number of the CUDA graph of each run."""

        def __getattr__(self, name: str) -> Any:
            return getattr(sessions[FORWARD], name)

        def run_with_iobinding(self, binding: Any, options: Any) -> None:
            happened.append(f"graph {options.get_run_config_entry('gpu_graph_id')}")
            sessions[FORWARD].run_with_iobinding(binding, options)

    monkeypatch.setattr("glowserve.runtime.buffers.TURNS", Recorded())
    captured = BoundSession(RecordedSession(), "cpu", [1, 4], capture=True)
    assert happened == [
        "use",  # the buffers
        *("use", "graph -1", "capture", "graph 1"),
        *("use", "graph -1", "capture", "graph 4"),
    ]
    given = feeds(FORWARD, digits, 0, 3)
    assert_same(captured.run(OUTPUTS[FORWARD], given), sessions[FORWARD].run(OUTPUTS[FORWARD], given))
    assert happened[9:] == ["use", "graph 4"]


def test_a_closed_session_cannot_run_and_its_thread_has_ended(
    sessions: dict[str, onnxruntime.InferenceSession],
) -> None:
    bound = BoundSession(sessions[REVERSE], "cpu", [1])
    running = next(iter(bound._thread._threads))
    bound.close()
    assert not running.is_alive()
    with pytest.raises(RuntimeError):
        bound.run(["pixels"], {"latent": latents(0, 0, 1, 64)})
