"""The way of an engine's buffers on a GPU, from loading to closing, with the CPU in place of the GPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from glowserve_service.config import ServiceConfig
from glowserve_service.models.loading import load_model

import glowserve
from glowserve.images import UInt8Array
from glowserve.runtime import engine as engine_module
from glowserve.runtime.buffers import Array, BoundSession
from glowserve.runtime.config import RuntimeConfig
from glowserve.runtime.engine import Engine
from glowserve.runtime.errors import BundleError
from glowserve.runtime.randomness import dequantization_noise
from glowserve.runtime.repository import Bundle
from tests.runtime.cpu_for_gpu import is_closed, use_cpu_for_gpu
from tests.servers import RunServer


@pytest.fixture
def bound(monkeypatch: pytest.MonkeyPatch) -> list[BoundSession]:
    """The sessions with buffers that a test makes."""
    return use_cpu_for_gpu(monkeypatch)


def test_a_loaded_model_has_buffers_for_every_batch_size_of_the_service(
    repository: Path, bound: list[BoundSession], monkeypatch: pytest.MonkeyPatch, digits: UInt8Array
) -> None:
    run, sizes = BoundSession.run, list[int]()

    def run_in_buffers(self: BoundSession, names: Sequence[str], feeds: Mapping[str, Array]) -> list[Array]:
        sizes.append(len(next(iter(feeds.values()))))
        self._session = None  # a batch without buffers fails
        return run(self, names, feeds)

    monkeypatch.setattr(BoundSession, "run", run_in_buffers)
    config = ServiceConfig(repository=repository, device="tensorrt", max_batch_size=12)
    loaded = load_model(repository / "digits" / "1", config)
    assert loaded.engine.device == "tensorrt"
    assert len(bound) == 2
    assert sorted(set(sizes)) == [1, 2, 4, 8, 12]
    images, noise = digits[3:8], dequantization_noise(3, digits[3:8])
    result = loaded.engine.forward(images, noise)
    expected = Engine(loaded.bundle, RuntimeConfig(device="cpu", threads=1)).forward(images, noise)
    for one, other in zip(vars(result).values(), vars(expected).values(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_an_engine_may_be_closed_twice(bundle: Bundle, bound: list[BoundSession]) -> None:
    engine = Engine(bundle, RuntimeConfig(device="cuda", batch_sizes=(1,)))
    for _ in range(2):
        engine.close()
    assert [is_closed(each) for each in bound] == [True, True]


def test_an_explanation_takes_no_buffers_and_no_tensorrt_and_is_freed_with_the_rest(
    bundle: Bundle, bound: list[BoundSession], digits: UInt8Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices: list[tuple[str, tuple[int, ...]]] = []
    open_sessions = engine_module.open_sessions

    def recorded(graphs: Any, config: RuntimeConfig, cancellation: Any) -> Any:
        devices.append((config.device, config.batch_sizes))
        return open_sessions(graphs, config, cancellation)

    monkeypatch.setattr(engine_module, "open_sessions", recorded)
    engine = Engine(bundle, RuntimeConfig(device="tensorrt", batch_sizes=(1, 4)))
    noise = dequantization_noise(0, digits)
    terms = engine.explain(digits, noise)
    expected = Engine(bundle, RuntimeConfig(device="cpu", threads=1)).explain(digits, noise)
    np.testing.assert_allclose(terms, expected, rtol=1e-5, atol=1e-5)
    assert devices[:2] == [("tensorrt", (1, 4)), ("cuda", ())]
    assert bound[2]._buffers == {}
    engine.close()
    assert [is_closed(each) for each in bound] == [True, True, True]


def test_an_explanation_that_fails_to_open_leaves_the_engine_as_it_was(
    bundle: Bundle, bound: list[BoundSession], digits: UInt8Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(bundle, RuntimeConfig(device="cuda", batch_sizes=(4,)))
    noise = dequantization_noise(0, digits[:4])
    with monkeypatch.context() as patch:
        patch.setattr(engine_module, "BoundSession", fail)
        with pytest.raises(BundleError, match="it fails"):
            engine.explain(digits[:4], noise)
    assert np.isfinite(engine.forward(digits[:4], noise).log_likelihood).all()
    assert engine.explain(digits[:4], noise).shape == (4, 8, 8)
    engine.close()


def fail(*_: Any, **__: Any) -> None:
    raise BundleError("it fails")


@pytest.mark.parametrize("step", ["check_canary", "_warm_up"])
def test_a_model_that_cannot_be_loaded_leaves_nothing_on_the_gpu(
    step: str, repository: Path, bound: list[BoundSession], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"glowserve_service.models.loading.{step}", fail)
    with pytest.raises(BundleError, match="it fails"):
        load_model(repository / "digits" / "1", ServiceConfig(repository=repository, device="cuda"))
    assert [is_closed(each) for each in bound] == [True, True]


def test_a_bundle_that_cannot_be_opened_leaves_nothing_on_the_gpu(
    repository: Path, bound: list[BoundSession], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("glowserve.client.transports.embedded.check_canary", fail)
    with pytest.raises(BundleError, match="it fails"):
        glowserve.open(repository / "digits", device="cuda")
    assert [is_closed(each) for each in bound] == [True, True]


def test_a_closed_client_of_a_bundle_leaves_nothing_on_the_gpu(
    repository: Path, bound: list[BoundSession]
) -> None:
    with glowserve.open(repository / "digits", device="cuda") as client:
        client.sample(1, temperature=0)
        assert [is_closed(each) for each in bound] == [False, False]
    assert [is_closed(each) for each in bound] == [True, True]


def test_a_stopped_service_leaves_nothing_on_the_gpu(
    run_server: RunServer, bound: list[BoundSession]
) -> None:
    with run_server(device="cuda"):
        assert [is_closed(each) for each in bound] == [False, False]
    assert [is_closed(each) for each in bound] == [True, True]
