"""A served model: the leases that keep it open, its canary, and its gauge of readiness."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from glowserve_service.config import ServiceConfig
from glowserve_service.errors import UnavailableError
from glowserve_service.models import served_model
from glowserve_service.models.loading import load_model
from glowserve_service.models.served_model import ServedModel
from glowserve_service.observability.metrics import Metrics
from glowserve_service.scheduling.ticket import DEFAULT_TICKET
from glowserve_service.scheduling.workers import Workers

from glowserve.images import UInt8Array
from glowserve.runtime.errors import BundleError


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
async def model(repository: Path, metrics: Metrics) -> AsyncIterator[ServedModel]:
    """The digits, in the event loop of the test."""
    config = ServiceConfig(repository=repository, device="cpu", max_batch_size=4)
    workers = Workers(1)
    model = ServedModel(
        load_model(repository / "digits" / "1", config), workers, config, metrics, lambda: None
    )
    yield model
    await model.close()
    workers.close()


async def scores(model: ServedModel, images: UInt8Array) -> Any:
    noise = np.full(images.shape, 0.5, np.float32)
    answer = await model.forward.run(images, noise, ticket=DEFAULT_TICKET)
    return answer.rows[0]


async def let_other_tasks_run() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


# Leases


async def test_a_replaced_model_answers_until_its_last_lease_is_released(
    model: ServedModel, digits: UInt8Array
) -> None:
    async with model.lease():
        async with model.lease():
            retiring = asyncio.create_task(model.retire())
            await let_other_tasks_run()
        await let_other_tasks_run()
        assert not retiring.done()
        assert np.isfinite(await scores(model, digits[:3])).all()
    await asyncio.wait_for(retiring, 60)
    with pytest.raises(UnavailableError):
        await scores(model, digits[:3])


async def test_the_release_of_the_last_lease_closes_a_replaced_model_without_a_timer(
    model: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_timer(*_: object, **__: object) -> Any:
        raise AssertionError("retire must not poll")

    lease = model.lease()
    await lease.__aenter__()
    for name in ("call_later", "call_at"):
        monkeypatch.setattr(asyncio.get_running_loop(), name, no_timer)
    retiring = asyncio.create_task(model.retire())
    await let_other_tasks_run()
    assert not retiring.done()
    await lease.__aexit__(None, None, None)
    await retiring


async def test_a_model_without_leases_is_closed_at_once(model: ServedModel, digits: UInt8Array) -> None:
    await model.retire()
    with pytest.raises(UnavailableError):
        await scores(model, digits[:1])


@pytest.mark.parametrize("error", [ValueError("a fault"), asyncio.CancelledError()])
async def test_a_lease_ends_with_a_call_that_fails_or_is_cancelled(
    model: ServedModel, error: BaseException
) -> None:
    async def call() -> None:
        async with model.lease():
            raise error

    with pytest.raises(type(error)):
        await call()
    await asyncio.wait_for(model.retire(), 60)


# The canary


async def test_a_canary_that_ends_as_it_is_cancelled_is_cancelled(
    model: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the canaries would go on, and a server that stops would wait for their end."""
    canary = Future[None]()
    canary.set_running_or_notify_cancel()
    monkeypatch.setattr(served_model, "call_in_daemon_thread", lambda *_: canary)
    task = asyncio.create_task(model.try_canary())
    await let_other_tasks_run()
    canary.set_result(None)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()


async def test_a_canary_that_does_not_end_is_a_failure_and_no_other_begins(
    model: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    goes_on, begun = threading.Event(), []

    def hang(*_: object) -> None:
        begun.append(1)
        assert goes_on.wait(60)

    monkeypatch.setattr(served_model, "check_canary", hang)
    monkeypatch.setattr(served_model, "_CANARY_SECONDS", 0.05)
    for _ in range(3):
        await model.try_canary()
        assert model.health.failure == "its canary has taken 0.05 s: the engine hangs"
    assert begun == [1]
    goes_on.set()
    monkeypatch.setattr(served_model, "_CANARY_SECONDS", 60)
    await model.try_canary()
    assert model.health.failure == ""


async def test_what_callers_read_about_a_canary_does_not_show_where_the_bundle_lies(
    model: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_engine: object, bundle: Any) -> None:
        raise BundleError(f"bundle {bundle.path}: its canary differs")

    monkeypatch.setattr(served_model, "check_canary", fail)
    await model.try_canary()
    assert model.health.failure == "bundle digits/1: its canary differs"


# The gauge


async def test_the_gauge_of_readiness_follows_the_health_and_nobody_writes_it(
    model: ServedModel, metrics: Metrics
) -> None:
    def ready() -> float | None:
        return metrics.registry.get_sample_value("glowserve_model_ready", {"model": "digits", "version": "1"})

    assert ready() is None
    model.show()
    assert ready() == 1
    model.health.set("it hangs")
    assert ready() == 0
    model.show()  # as when another version begins to be served beside it
    assert ready() == 0
    model.health.set("")
    assert ready() == 1
    model.hide()
    assert ready() is None
