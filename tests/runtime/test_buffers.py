"""Buffers that are made once: what a session computes through them, bit by bit, on the CPU."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from glowserve_service.config import ServiceConfig
from glowserve_service.models.models import load_model

from glowserve.images import UInt8Array
from glowserve.runtime.buffers import BoundSession
from glowserve.runtime.config import RuntimeConfig, bucket_sizes
from glowserve.runtime.engine import Engine
from glowserve.runtime.errors import BundleError
from glowserve.runtime.gpu_turns import Turns
from glowserve.runtime.randomness import dequantization_noise, latents
from glowserve.runtime.repository import FORWARD, REVERSE, Bundle
from glowserve.runtime.sessions import Graph, open_sessions

Array = np.ndarray
OUTPUTS = {FORWARD: ["log_likelihood", "latent", "log_prior", "log_det"], REVERSE: ["image", "pixels"]}


@pytest.fixture(scope="module")
def sessions(bundle: Bundle) -> dict[str, onnxruntime.InferenceSession]:
    """One each way, of one thread, without buffers."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return {
        graph: onnxruntime.InferenceSession(bundle.read(graph), options, providers=["CPUExecutionProvider"])
        for graph in (FORWARD, REVERSE)
    }


@pytest.fixture(scope="module")
def bound(sessions: dict[str, onnxruntime.InferenceSession]) -> dict[str, BoundSession]:
    """The same sessions, with buffers for up to 12 rows."""
    return {graph: BoundSession(session, "cpu", bucket_sizes(12)) for graph, session in sessions.items()}


def feeds(graph: str, digits: UInt8Array, first: int, rows: int) -> dict[str, Array]:
    """Inputs that are different from row to row."""
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
def test_buffers_of_a_batchs_size_larger_ones_and_none_give_the_same_bits(
    bound: dict[str, BoundSession],
    sessions: dict[str, onnxruntime.InferenceSession],
    digits: UInt8Array,
    graph: str,
    rows: int,
) -> None:
    given = feeds(graph, digits, rows, rows)
    assert_same(bound[graph].run(OUTPUTS[graph], given), sessions[graph].run(OUTPUTS[graph], given))


def test_a_result_stays_what_it_was_when_the_next_batch_runs(
    bound: dict[str, BoundSession], digits: UInt8Array
) -> None:
    first = bound[FORWARD].run(OUTPUTS[FORWARD], feeds(FORWARD, digits, 0, 4))
    before = [array.copy() for array in first]
    bound[FORWARD].run(OUTPUTS[FORWARD], feeds(FORWARD, digits, 50, 4))
    assert_same(first, before)


def test_rows_of_another_batch_do_not_fill_up_a_smaller_one(
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


def test_a_model_that_is_loaded_for_a_gpu_runs_through_buffers_of_every_batch_size_it_meets(
    repository: Path, monkeypatch: pytest.MonkeyPatch, digits: UInt8Array
) -> None:
    bound, used = on_cpu(monkeypatch), []
    run = BoundSession.run

    def told(self: BoundSession, names: Sequence[str], feeds: Mapping[str, Array]) -> list[Array]:
        used.append(len(next(iter(feeds.values()))))
        self._session = None  # a batch that has no buffers fails
        return run(self, names, feeds)

    monkeypatch.setattr(BoundSession, "run", told)
    config = ServiceConfig(repository=repository, device="tensorrt", max_batch_size=12)
    loaded = load_model(repository / "digits" / "1", config)
    assert loaded.engine.device == "tensorrt"
    assert len(bound) == 2
    assert sorted(set(used)) == [1, 2, 4, 8, 12]
    given = feeds(FORWARD, digits, 3, 5)
    result = loaded.engine.forward(given["image"], given["noise"])
    expected = Engine(loaded.bundle, RuntimeConfig(device="cpu", threads=1)).forward(
        given["image"], given["noise"]
    )
    assert_same([*vars(result).values()], [*vars(expected).values()])


def test_outputs_come_in_the_order_in_which_they_were_asked_for(
    bound: dict[str, BoundSession], digits: UInt8Array
) -> None:
    given = feeds(FORWARD, digits, 0, 3)
    latent, nats = bound[FORWARD].run(["latent", "log_likelihood"], given)
    assert (latent.shape, nats.shape) == ((3, 64), (3,))


@pytest.mark.parametrize("dtype", [np.float64, np.uint8, np.int32])
def test_an_array_of_another_type_is_not_taken_for_the_right_one(
    bound: dict[str, BoundSession], dtype: type
) -> None:
    with pytest.raises(TypeError, match="Cannot cast"):
        bound[REVERSE].run(["pixels"], {"latent": np.zeros((2, 64), dtype)})


def test_each_size_runs_once_beside_others_and_is_then_captured_alone(
    sessions: dict[str, onnxruntime.InferenceSession], digits: UInt8Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    happened = list[str]()

    class Told(Turns):
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

    class OneTold:
        """A session that tells with which graph it runs."""

        def __getattr__(self, name: str) -> Any:
            return getattr(sessions[FORWARD], name)

        def run_with_iobinding(self, binding: Any, options: Any) -> None:
            happened.append(f"graph {options.get_run_config_entry('gpu_graph_id')}")
            sessions[FORWARD].run_with_iobinding(binding, options)

    monkeypatch.setattr("glowserve.runtime.buffers.TURNS", Told())
    captured = BoundSession(OneTold(), "cpu", [1, 4], capture=True)
    assert happened == [
        "use",  # the buffers
        *("use", "graph -1", "capture", "graph 1"),
        *("use", "graph -1", "capture", "graph 4"),
    ]
    given = feeds(FORWARD, digits, 0, 3)
    assert_same(captured.run(OUTPUTS[FORWARD], given), sessions[FORWARD].run(OUTPUTS[FORWARD], given))
    assert happened[9:] == ["use", "graph 4"]


def on_cpu(monkeypatch: pytest.MonkeyPatch) -> list[BoundSession]:
    """Has the CPU stand for the GPU; what is bound goes into the list."""
    bound = list[BoundSession]()

    class OnCpu(BoundSession):
        def __init__(self, session: Any, device: str, sizes: Sequence[int], *, capture: bool) -> None:
            super().__init__(session, "cpu", sizes, capture=capture)
            bound.append(self)

    def open_on_cpu(graphs: Sequence[Graph], config: RuntimeConfig) -> tuple[str, list[Any]]:
        return config.device, open_sessions(graphs, replace(config, device="cpu"))[1]

    monkeypatch.setattr("glowserve.runtime.engine.BoundSession", OnCpu)
    monkeypatch.setattr("glowserve.runtime.engine.open_sessions", open_on_cpu)
    return bound


def closed(bound: BoundSession) -> bool:
    return bound._session is None and not any(thread.is_alive() for thread in bound._thread._threads)


def test_an_engine_may_be_closed_twice(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    bound = on_cpu(monkeypatch)
    engine = Engine(bundle, RuntimeConfig(device="cuda", batch_sizes=(1,)))
    for _ in range(2):
        engine.close()
    assert [closed(each) for each in bound] == [True, True]


@pytest.mark.parametrize("what", ["check_canary", "_warm_up"])
def test_a_model_that_cannot_be_loaded_leaves_nothing_on_the_gpu(
    what: str, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bound = on_cpu(monkeypatch)

    def fail(*_: Any) -> None:
        raise BundleError("it is another")

    monkeypatch.setattr(f"glowserve_service.models.models.{what}", fail)
    with pytest.raises(BundleError, match="it is another"):
        load_model(repository / "digits" / "1", ServiceConfig(repository=repository, device="cuda"))
    assert [closed(each) for each in bound] == [True, True]


def test_a_service_that_stops_leaves_nothing_on_the_gpu(
    run_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    bound = on_cpu(monkeypatch)
    with run_server(device="cuda"):
        assert [closed(each) for each in bound] == [False, False]
    assert [closed(each) for each in bound] == [True, True]


def test_what_is_closed_runs_no_more_and_its_thread_ends(
    sessions: dict[str, onnxruntime.InferenceSession],
) -> None:
    bound = BoundSession(sessions[REVERSE], "cpu", [1])
    running = next(iter(bound._thread._threads))
    bound.close()
    assert not running.is_alive()
    with pytest.raises(RuntimeError):
        bound.run(["pixels"], {"latent": latents(0, 0, 1, 64)})
