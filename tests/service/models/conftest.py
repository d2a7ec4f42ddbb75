"""What the tests of models share: a repository to write to, a second version, and a service to watch."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.servers import RunServer
from tests.service.bundles import make_other
from tests.service.models.running import RunningService, RunService
from tests.service.stubs import address


@pytest.fixture
def models(repository: Path, tmp_path: Path) -> Path:
    """A repository of the test's own, with version 1 of the digits."""
    shutil.copytree(repository / "digits" / "1", tmp_path / "models" / "digits" / "1")
    return tmp_path / "models"


@pytest.fixture(scope="session")
def second(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle, version 2 of the digits, whose scores and samples differ from those of version 1."""
    target = tmp_path_factory.mktemp("second") / "digits" / "2"
    make_other(repository / "digits" / "1", target, log_det=1.1, bins=0.75)
    return target


@pytest.fixture
def run_service(run_server: RunServer) -> RunService:
    """Runs a server: `with run_service(repository=...) as service`."""

    @contextmanager
    def run(**settings: Any) -> Iterator[RunningService]:
        with run_server(**settings) as server, grpc.insecure_channel(address(server)) as channel:
            yield RunningService(server, channel)

    return run
