"""How many front-ends a service has that is not told."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from glowserve_service.config import ServiceConfig
from glowserve_service.frontends import number
from glowserve_service.frontends.number import frontends_for, reason, with_frontends

from tests.servers import StartServer

GIB = 2.0**30


@pytest.mark.parametrize(
    ("cores", "memory", "has_gpu", "frontends"),
    [
        (1, math.inf, False, 1),
        (2, math.inf, False, 1),
        (7, math.inf, False, 1),
        (8, math.inf, False, 2),
        (16, math.inf, False, 4),
        (128, math.inf, False, 4),
        (2, math.inf, True, 1),
        (4, math.inf, True, 2),
        (128, math.inf, True, 4),
        (16, 0.5 * GIB, False, 1),
        (16, 4 * GIB, False, 2),
        (16, 7.9 * GIB, True, 3),
    ],
)
def test_the_number_follows_cores_memory_and_whether_there_is_a_gpu(
    cores: int, memory: float, has_gpu: bool, frontends: int
) -> None:
    assert frontends_for(cores, memory, has_gpu=has_gpu) == frontends


def test_only_linux_has_more_than_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(number.sys, "platform", "darwin")
    assert frontends_for(128, math.inf, has_gpu=True) == 1


def test_the_reason_names_what_the_number_was_chosen_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(number, "cores", lambda: 16)
    machine = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 64 * GIB / 4096}
    monkeypatch.setattr(number.os, "sysconf", machine.__getitem__)
    monkeypatch.setattr(number, "memory_limit", lambda: 6 * GIB)
    config = with_frontends(ServiceConfig(repository=Path(), device="cuda"))
    assert config.frontends == 3
    assert reason(config) == "front-ends: 3, chosen for 16 cores, 6 GiB of memory, a GPU"
    # Version 1 of control groups, without a limit.
    monkeypatch.setattr(number, "memory_limit", lambda: 2.0**63)
    config = with_frontends(ServiceConfig(repository=Path(), device="cpu"))
    assert reason(config) == "front-ends: 4, chosen for 16 cores"
    machine["SC_PHYS_PAGES"] = 2 * GIB / 4096
    config = with_frontends(ServiceConfig(repository=Path(), device="cpu"))
    assert reason(config) == "front-ends: 1, chosen for 16 cores, 2 GiB of memory"


def test_a_number_that_is_given_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(number, "cores", lambda: 128)
    for given in (1, 2):
        assert with_frontends(ServiceConfig(repository=Path(), frontends=given)).frontends == given


def test_a_service_that_is_not_told_says_its_number_and_serves(start_server: StartServer) -> None:
    with start_server("--frontends", "0") as server:
        log = server.stop()
    assert " front-ends: " in log
