"""An engine that fails while it serves: how batches and canaries find it, and what health and callers learn."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from glowserve_service.models import served_model
from glowserve_service.models.engine_health import EngineHealth
from glowserve_service.models.served_model import ServedModel

from glowserve.images import UInt8Array
from glowserve.messages import float_tensor
from glowserve.oip import grpc_service_pb2 as oip
from glowserve.runtime.config import RuntimeConfig
from glowserve.runtime.engine import Engine
from glowserve.runtime.repository import open_bundle
from glowserve.v1 import glow_service_pb2 as pb
from tests.service.log_records import records_of
from tests.service.models.running import ON_REQUEST, RunningService, RunService, publish
from tests.service.stubs import NOT_SERVING, SERVING
from tests.service.wire import raw, refusal, wait_for

CANARIES: dict[str, Any] = {"poll_seconds": 0, "canary_seconds": 0.1}


# EngineHealth


async def test_a_change_of_health_is_published_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    changes: list[str] = []
    health = EngineHealth("digits version 1", lambda: changes.append(health.failure))
    for failure in ("", "it hangs", "it hangs", "", ""):
        health.set(failure)
    assert changes == ["it hangs", ""]
    assert [record.message for record in records_of(caplog)] == [
        "digits version 1 is not ready: it hangs",
        "digits version 1 is ready again: its canary passes",
    ]


async def test_an_exception_of_a_watched_function_is_a_failure_and_reaches_its_caller() -> None:
    failed = asyncio.Event()
    health = EngineHealth("digits version 1", failed.set)
    rows = np.zeros((2, 3))

    def fail(*_: object) -> Any:
        raise RuntimeError("CUDA error")

    assert await asyncio.to_thread(health.watched(lambda *arrays: arrays), rows) == (rows,)
    assert health.failure == ""
    with pytest.raises(RuntimeError, match="CUDA error"):
        await asyncio.to_thread(health.watched(fail), rows)
    await asyncio.wait_for(failed.wait(), 60)
    assert health.failure == "its engine failed in a batch; the error is in the server's log"


# In a service


@contextmanager
def failing(model: ServedModel, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Lets the sessions of an engine fail, and nothing of the service."""

    class Failing:
        def run(self, *_: Any) -> Any:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with monkeypatch.context() as patch:
        patch.setattr(model._engine, "_forward", Failing())
        yield


def listed(service: RunningService) -> list[tuple[str, str]]:
    """The states of the served models, and the reasons."""
    models = service.glow.ListModels(pb.ListModelsRequest()).models
    return [(pb.ModelState.Name(each.state).removeprefix("MODEL_STATE_"), each.reason) for each in models]


def test_a_failing_canary_and_its_recovery_show_in_health_metrics_and_lists(
    run_service: RunService, models: Path, second: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(second, models / "faces" / "1")
    with run_service(repository=models, **CANARIES) as service:
        watches = [service.watch(name) for name in ("", "digits")]
        assert [next(watch).status for watch in watches] == [SERVING, SERVING]
        with failing(service.model("digits"), monkeypatch):
            assert [next(watch).status for watch in watches] == [NOT_SERVING, NOT_SERVING]
            assert service.status("glowserve.v1.GlowService") == NOT_SERVING
            assert service.status("faces") == SERVING
            assert service.value("model_ready", model="digits", version="1") == 0
            assert service.value("model_ready", model="faces", version="1") == 1
            assert service.value("canary_checks_total", model="digits", outcome="failed") >= 1
            assert listed(service) == [
                ("FAILING", "its engine failed on the canary; the error is in the server's log"),
                ("SERVING", ""),
            ]
            assert not service.inference.ServerReady(oip.ServerReadyRequest()).ready
            assert not service.inference.ModelReady(oip.ModelReadyRequest(name="digits")).ready
            assert service.inference.ModelReady(oip.ModelReadyRequest(name="faces")).ready
        assert [next(watch).status for watch in watches] == [SERVING, SERVING]
        assert service.value("model_ready", model="digits", version="1") == 1
        assert listed(service) == [("SERVING", ""), ("SERVING", "")]


def test_a_canary_finds_an_engine_that_computes_other_numbers(
    run_service: RunService, repository: Path, second: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Engine(open_bundle(second), RuntimeConfig(device="cpu", threads=1))
    with run_service(repository=repository, **CANARIES) as service:
        with monkeypatch.context() as patch:
            patch.setattr(service.model()._engine, "_forward", other._forward)
            wait_for(lambda: service.status("digits") == NOT_SERVING)
            ((state, reason),) = listed(service)
            assert state == "FAILING"
            assert reason.startswith("bundle digits/1: its canary has a log-likelihood of")
        wait_for(lambda: service.status("digits") == SERVING)


def test_a_batch_that_does_not_end_makes_its_model_unready_until_it_has_ended(
    run_service: RunService, repository: Path, digits: UInt8Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The canary, in another thread, passes meanwhile."""
    go_on, forward = threading.Event(), Engine.forward

    def wait_and_run(engine: Engine, *rows: Any, **options: Any) -> Any:
        if threading.current_thread().name.startswith("engine"):
            assert go_on.wait(60)
        return forward(engine, *rows, **options)

    with run_service(repository=repository, **CANARIES) as service:
        monkeypatch.setattr(Engine, "forward", wait_and_run)
        monkeypatch.setattr(served_model, "_BATCH_SECONDS", 0.5)
        call = service.glow.Score.future(pb.ScoreRequest(images=raw(digits[:1])))
        wait_for(lambda: service.status("digits") == NOT_SERVING)
        assert listed(service) == [("FAILING", "a batch has taken more than 0.5 s: the engine hangs")]
        go_on.set()
        assert call.result(60).scores
        wait_for(lambda: service.status("digits") == SERVING)


def test_an_engine_that_fails_in_a_batch_is_not_ready_until_its_model_is_loaded_again(
    run_service: RunService, models: Path, digits: UInt8Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without canaries. Here another version is loaded."""
    with run_service(repository=models, **ON_REQUEST) as service:
        score = pb.ScoreRequest(images=raw(digits[:1]))
        with failing(service.model(), monkeypatch):
            assert refusal(lambda: service.glow.Score(score)) == (
                grpc.StatusCode.INTERNAL,
                "internal error; it is in the server's log",
            )
            wait_for(lambda: service.status() == NOT_SERVING)
        assert listed(service) == [
            ("FAILING", "its engine failed in a batch; the error is in the server's log")
        ]
        publish(models / "digits" / "1", models / "digits" / "2")
        assert service.load() == [2]
        assert service.status() == SERVING


def test_a_bad_request_does_not_make_a_model_unready(
    run_service: RunService, repository: Path, digits: UInt8Array
) -> None:
    with run_service(repository=repository, **ON_REQUEST) as service:
        for request in (pb.ScoreRequest(), pb.ScoreRequest(images=raw(digits[:1, :4]))):
            assert refusal(lambda request=request: service.glow.Score(request))[0] is (
                grpc.StatusCode.INVALID_ARGUMENT
            )
        huge = float_tensor(np.full((1, 64), 3e38, np.float32))
        assert refusal(lambda: service.glow.Decode(pb.DecodeRequest(latents=huge)))[0] is (
            grpc.StatusCode.FAILED_PRECONDITION
        )
        assert service.status() == SERVING
