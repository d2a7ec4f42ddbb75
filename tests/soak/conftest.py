"""Fixtures of the soak tests: a tiny model, versions of it with other answers, and services that run as processes."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

import glowserve
from glowserve.images import UInt8Array
from glowserve.runtime.repository import Bundle
from tests.service.bundles import make_other
from tests.soak.known_answers import KnownAnswers
from tests.soak.service import Service, running_service

Serve = Callable[..., AbstractContextManager[Service]]
MakeVersion = Callable[[int], Path]


def pytest_itemcollected(item: pytest.Item) -> None:
    """Gives soak tests more time than other tests have."""
    item.add_marker(pytest.mark.timeout(3600))


@pytest.fixture(scope="session")
def serve(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Serve:
    """Runs a service as a process: `with serve("--poll-seconds", "1", models=REPOSITORY) as service`.

    Its log is JSON. Its queues hold what 64 callers can submit, 100 images each, so that it refuses none of them.
    """
    folder, numbers = tmp_path_factory.mktemp("services"), itertools.count()

    def start(*flags: str, models: Path = repository, **options: Any) -> AbstractContextManager[Service]:
        flags = ("--log-format", "json", "--max-queue-size", "8192", *flags)
        return running_service(models, folder / f"{next(numbers)}.log", *flags, **options)

    return start


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model so small that its arithmetic takes less time than the rest of a call."""
    from glowserve_training.hardware import Hardware
    from glowserve_training.presets import run_config
    from glowserve_training.run import train

    config = run_config("digits", steps_per_level=2, width=8, steps=100, batch_size=32)
    return train(config, tmp_path_factory.mktemp("run"), hardware=Hardware(device="cpu"))


@pytest.fixture(scope="session")
def photographs(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A small model of CIFAR-10's images."""
    from glowserve_export.bundle import export
    from glowserve_export.source import load_glowserve_checkpoint
    from glowserve_training.hardware import Hardware
    from glowserve_training.presets import run_config
    from glowserve_training.run import train

    folder, data = tmp_path_factory.mktemp("photographs"), str(shared_data / "cifar10-jpeg")
    config = run_config(data, steps_per_level=4, width=64, steps=500, batch_size=32)
    trained = train(config, folder / "run", hardware=Hardware(device="cpu"))
    return export(load_glowserve_checkpoint(trained), folder / "models" / "photographs")


@pytest.fixture(scope="session")
def known(embedded: glowserve.Client, digits: UInt8Array) -> KnownAnswers:
    """The answers of version 1 of that model."""
    return KnownAnswers.of(embedded, digits[:100])


@pytest.fixture(scope="session")
def make_version(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> MakeVersion:
    """Makes the valid bundle MODEL/N, whose scores and samples differ from those of any other N: `make_version(2)`."""
    folder = tmp_path_factory.mktemp("versions") / "digits"

    def make(number: int) -> Path:
        target = folder / str(number)
        if not target.exists():
            make_other(repository / "digits" / "1", target, log_det=1 + 0.05 * number, bins=1 - 0.02 * number)
        return target

    return make


@pytest.fixture
def models(repository: Path, tmp_path: Path) -> Path:
    """A repository that the test may change, with version 1 of the digits."""
    shutil.copytree(repository / "digits" / "1", tmp_path / "models" / "digits" / "1")
    return tmp_path / "models"
