"""Versions that are refused: what callers, the log and the metrics say about them, and when they are tried again."""

from __future__ import annotations

import logging
import shutil
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from glowserve_service.models.daemon_threads import call_in_daemon_thread
from glowserve_service.models.unserved import LoadFailure, Unserved, UnservedVersions

from glowserve.oip import grpc_service_pb2 as oip
from glowserve.runtime.errors import BundleError
from tests.growth import growth
from tests.service.bundles import scale
from tests.service.log_records import records_of
from tests.service.models.running import ON_REQUEST, RunningService, RunService, damage, publish
from tests.service.stubs import SERVING


def failure(reason: str, *, final: bool = True) -> LoadFailure:
    return LoadFailure(BundleError(reason), reason, ("fingerprint",), final)


def test_versions_are_listed_by_name_and_number_with_the_one_that_is_being_loaded() -> None:
    unserved = UnservedVersions()
    unserved.set(("digits", 10), failure("damaged"))
    unserved.set(("digits", 2), failure("incomplete", final=False))
    unserved.loading = ("faces", 1)
    assert list(unserved) == [
        Unserved("digits", 2, "incomplete", refused=False),
        Unserved("digits", 10, "damaged", refused=True),
        Unserved("faces", 1, "", refused=False),
    ]


def test_a_refused_version_that_is_tried_again_is_loading_and_keeps_its_reason() -> None:
    unserved = UnservedVersions()
    unserved.set(("digits", 2), failure("damaged"))
    unserved.loading = ("digits", 2)
    assert list(unserved) == [Unserved("digits", 2, "damaged", refused=False)]


def test_versions_and_models_that_are_gone_are_forgotten() -> None:
    unserved = UnservedVersions()
    for key in (("digits", 1), ("digits", 2), ("faces", 1)):
        unserved.set(key, failure("damaged"))
    unserved.keep("digits", [2])
    assert [(each.name, each.version) for each in unserved] == [("digits", 2), ("faces", 1)]
    unserved.keep_models(["faces"])
    assert [(each.name, each.version) for each in unserved] == [("faces", 1)]
    unserved.forget(("faces", 1))
    assert unserved.errors() == []


@pytest.mark.parametrize("of_one_model", [True, False], ids=["versions of a model", "models"])
def test_what_a_poll_forgets_is_found_in_time_that_grows_with_the_failures(of_one_model: bool) -> None:
    def keep(failures: int) -> None:
        unserved = UnservedVersions()
        found = (
            {"digits": list(range(1, failures + 1))}
            if of_one_model
            else {str(i): [1] for i in range(failures)}
        )
        for name, versions in found.items():
            for version in versions:
                unserved.set((name, version), damaged)
        for name, versions in found.items():
            unserved.keep(name, versions)
        assert len(list(unserved)) == failures

    damaged = failure("damaged")
    assert growth(keep, 500, 8) < 16


def test_a_poll_looks_at_all_refused_versions_of_a_model_in_one_thread(
    run_service: RunService, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[object] = []

    def counted(*work: Any) -> Future[Any]:
        threads.append(work)
        return call_in_daemon_thread(*work)

    def threads_of_a_poll(service: RunningService) -> int:
        threads.clear()
        service.poll()
        return len(threads)

    monkeypatch.setattr("glowserve_service.models.loader_threads.call_in_daemon_thread", counted)
    with run_service(repository=models, **ON_REQUEST) as service:
        before = threads_of_a_poll(service)
        for version in range(2, 32):
            (models / "digits" / str(version)).mkdir()
            (models / "digits" / str(version) / "manifest.json").touch()
        for _ in range(2):
            service.poll()
        assert len(service.not_served()) == 30
        assert threads_of_a_poll(service) == before
        assert service.served() == [("digits", 1)]


def test_a_damaged_version_is_refused_once_and_the_old_version_is_still_served(
    run_service: RunService, models: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(models / "digits" / "1", tmp_path / "damaged")
    damage(tmp_path / "damaged")
    with run_service(repository=models, **ON_REQUEST) as service:
        publish(tmp_path / "damaged", models / "digits" / "3")
        service.poll()
        assert service.not_served() == [("digits", 3, "LOADING")]  # somebody may still be writing it
        for _ in range(3):
            service.poll()
            assert service.not_served() == [("digits", 3, "REFUSED")]
        assert service.served() == [("digits", 1)]
        assert service.answering_version() == 1
        assert service.reason() == (
            "bundle digits/3: forward.onnx is not the file that was exported (its SHA-256 differs); "
            "export the model again"
        )
        assert (service.loads("refused"), service.loads("loaded")) == (1, 1)
        assert (service.status(), service.status("digits")) == (SERVING, SERVING)
        index = service.inference.RepositoryIndex(oip.RepositoryIndexRequest()).models
        (refused,) = [each for each in index if each.version == "3"]
        assert (refused.state, refused.reason) == ("UNAVAILABLE", service.reason())
        ready = service.inference.RepositoryIndex(oip.RepositoryIndexRequest(ready=True)).models
        assert {each.version for each in ready} == {"1"}
        lines = [record for record in records_of(caplog) if "digits version 3 is refused" in record.message]
        assert [line.levelno for line in lines] == [logging.ERROR]
        shutil.rmtree(models / "digits" / "3")
        service.poll()
        assert service.not_served() == []


def test_a_version_whose_canary_fails_is_refused(run_service: RunService, models: Path) -> None:
    shutil.copytree(models / "digits" / "1", models / "digits" / "2")
    scale(models / "digits" / "2", "forward.onnx", "log_det_constant", 1.1)
    with run_service(repository=models, **ON_REQUEST) as service:
        assert service.served() == [("digits", 1)]
        assert service.not_served() == [("digits", 2, "REFUSED")]
        assert "bundle digits/2: its canary has a log-likelihood of" in service.reason()


def test_an_unforeseen_error_is_logged_and_callers_read_a_sentence_without_it(
    run_service: RunService,
    models: Path,
    second: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(*_: object) -> None:
        raise MemoryError("of the machine")

    with run_service(repository=models, **ON_REQUEST) as service:
        monkeypatch.setattr("glowserve_service.models.manager.load_model", fail)
        publish(second, models / "digits" / "2")
        service.poll()
        service.poll()
        assert service.served() == [("digits", 1)]
        assert service.reason() == ("bundle digits/2: an unforeseen error, which is in the server's log")
    (fault,) = [record for record in records_of(caplog) if record.exc_info]
    assert fault.message.endswith("digits/2 failed")
    assert "MemoryError: of the machine" in (fault.exc_text or "")
