"""LoadModel and UnloadModel, of both protocols: from the call to what is served, health and the metrics."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import grpc
import pytest
from glowserve_service.config import ServiceConfig
from glowserve_service.models.loading import LoadedModel, load_model

from glowserve.oip import grpc_service_pb2 as oip
from glowserve.runtime.sessions import Cancellation
from glowserve.v1 import glow_service_pb2 as pb
from tests.service import metrics
from tests.service.models.running import ON_REQUEST, RunService, damage, publish
from tests.service.stubs import NOT_SERVING, SERVING
from tests.service.wire import refusal, wait_for


def test_models_are_loaded_and_unloaded_on_request(
    run_service: RunService, models: Path, second: Path
) -> None:
    with run_service(repository=models, **ON_REQUEST) as service:
        publish(second, models / "digits" / "2")
        publish(second, models / "faces" / "1")
        assert service.served() == [("digits", 1)]
        assert service.load() == [2]
        assert service.load() == [2]
        assert service.load("faces") == [1]
        service.unload()
        service.unload()
        assert service.served() == [("faces", 1)]
        assert refusal(service.answering_version) == (
            grpc.StatusCode.NOT_FOUND,
            "model.name 'digits' is not served; served are faces version 1",
        )
        statuses = [service.status(name) for name in ("", "digits", "faces")]
        assert statuses == [SERVING, NOT_SERVING, SERVING]
        queue = {"model": "digits", "direction": "forward"}
        assert not metrics.has_series(service.server, "queue_length", **queue)
        service.unload("faces")
        assert service.status() == NOT_SERVING
        assert refusal(lambda: service.answering_version(""))[0] is grpc.StatusCode.NOT_FOUND
        assert not service.inference.ServerReady(oip.ServerReadyRequest()).ready
        assert service.load() == [2]
        assert [service.status(name) for name in ("", "digits")] == [SERVING, SERVING]
        assert metrics.has_series(service.server, "queue_length", **queue)


def test_a_poll_does_not_load_a_model_that_was_unloaded(
    run_service: RunService, models: Path, second: Path
) -> None:
    with run_service(repository=models, **ON_REQUEST) as service:
        service.unload()
        publish(second, models / "digits" / "2")
        service.poll()
        assert service.served() == []
        assert service.load() == [2]


def test_loading_a_damaged_version_fails_and_the_old_version_is_still_served(
    run_service: RunService, models: Path
) -> None:
    shutil.copytree(models / "digits" / "1", models / "digits" / "2")
    damage(models / "digits" / "2")
    with run_service(repository=models, **ON_REQUEST) as service:
        for _ in range(2):
            code, message = refusal(service.load)
            assert code is grpc.StatusCode.FAILED_PRECONDITION
            assert message.startswith("bundle digits/2: forward.onnx is not the file that was exported")
        assert service.served() == [("digits", 1)]
        assert service.loads("refused") == 3


def test_a_model_that_has_no_folder_is_not_found(run_service: RunService, models: Path) -> None:
    """Whatever the name is, it leads nowhere else in the file system."""
    names = ["", "nobody", "../models/digits", "digits/1", ".", "..", "/", "digits\0"]
    with run_service(repository=models / ".." / "models", **ON_REQUEST) as service:
        for name in names:
            code, message = refusal(lambda name=name: service.load(name))
            assert code is grpc.StatusCode.NOT_FOUND
            assert message == f"model {name!r} is not in the repository; there are digits"
            assert refusal(lambda name=name: service.unload(name))[0] is grpc.StatusCode.NOT_FOUND


def test_the_open_inference_protocol_loads_and_unloads_too(
    run_service: RunService, models: Path, second: Path
) -> None:
    with run_service(repository=models, **ON_REQUEST) as service:
        publish(second, models / "digits" / "2")
        service.inference.RepositoryModelLoad(oip.RepositoryModelLoadRequest(model_name="digits"))
        assert service.answering_version() == 2
        service.inference.RepositoryModelUnload(oip.RepositoryModelUnloadRequest(model_name="digits"))
        assert service.served() == []
        assert not service.inference.ModelReady(oip.ModelReadyRequest(name="digits")).ready


def test_loading_and_unloading_are_off_unless_the_settings_allow_them(
    run_service: RunService, repository: Path
) -> None:
    load = oip.RepositoryModelLoadRequest(model_name="digits")
    unload = oip.RepositoryModelUnloadRequest(model_name="digits")
    with run_service(repository=repository) as service:
        for call in (
            service.load,
            service.unload,
            lambda: service.inference.RepositoryModelLoad(load),
            lambda: service.inference.RepositoryModelUnload(unload),
        ):
            code, message = refusal(call)
            assert code is grpc.StatusCode.PERMISSION_DENIED
            assert "`glowserve serve --admin on` allows them" in message
        assert service.answering_version() == 1


def test_a_load_is_completed_although_its_caller_has_given_up(
    run_service: RunService, models: Path, second: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def load_later(path: Path, config: ServiceConfig, cancellation: Cancellation) -> LoadedModel:
        begun.set()
        assert go_on.wait(60)
        return load_model(path, config, cancellation)

    with run_service(repository=models, **ON_REQUEST) as service:
        monkeypatch.setattr("glowserve_service.models.manager.load_model", load_later)
        publish(second, models / "digits" / "2")
        call = service.glow.LoadModel.future(pb.LoadModelRequest(name="digits"))
        assert begun.wait(60)
        call.cancel()
        wait_for(lambda: service.value("requests_in_flight") == 0)
        assert service.served() == [("digits", 1)]
        go_on.set()
        wait_for(lambda: service.served() == [("digits", 2)])
