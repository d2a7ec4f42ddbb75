"""A service that finds no model to serve waits for one, if it is set up so."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.service.models.running import POLL, RunService, damage, publish
from tests.service.stubs import NOT_SERVING, SERVING
from tests.service.wire import wait_for

WAIT = {**POLL, "wait_for_models": "on"}


@pytest.mark.parametrize("missing", [False, True])
def test_a_service_without_a_model_is_not_ready_and_serves_the_first_that_appears(
    run_service: RunService,
    repository: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    missing: bool,
) -> None:
    models = tmp_path / "models"
    if not missing:
        models.mkdir()
    with run_service(repository=models, **WAIT) as service:
        assert service.status() == NOT_SERVING
        assert service.served() == []
        lines = [record.getMessage() for record in caplog.records if "waiting for a model" in record.message]
        assert len(lines) == 1
        assert "glowserve export" in lines[0]
        (models / "digits").mkdir(parents=True)
        publish(repository / "digits" / "1", models / "digits" / "1")
        wait_for(lambda: service.status() == SERVING)
        assert service.answering_version() == 1


def test_a_service_whose_only_version_is_refused_serves_the_next(
    run_service: RunService, models: Path, repository: Path
) -> None:
    damage(models / "digits" / "1")
    with run_service(repository=models, **WAIT) as service:
        assert service.status() == NOT_SERVING
        assert service.not_served() == [("digits", 1, "REFUSED")]
        publish(repository / "digits" / "1", models / "digits" / "2")
        wait_for(lambda: service.status() == SERVING)
        assert service.served() == [("digits", 2)]
