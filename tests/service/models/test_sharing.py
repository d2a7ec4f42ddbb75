"""Two models of a service, one of which takes long: calls of the other one do not wait for it."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from glowserve.images import UInt8Array
from glowserve.runtime.engine import Engine, Forward
from glowserve.v1 import glow_service_pb2 as pb
from tests.service.models.running import RunService
from tests.service.wire import copied, raw

_SLOW_SECONDS, _SLOW_CALLERS = 0.4, 12


@pytest.mark.parametrize("instances", [1, 2])
def test_a_lone_caller_of_a_fast_model_seldom_waits_for_the_callers_of_a_slow_one(
    instances: int,
    run_service: RunService,
    repository: Path,
    tmp_path: Path,
    digits: UInt8Array,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("digits", "slow"):
        changes: dict[str, Any] = {"model": name, "version": "1"}
        copied(repository / "digits" / "1", tmp_path / name / "1", **changes)
    forward, over, answers = Engine.forward, threading.Event(), list[float]()

    def slowly(engine: Engine, images: UInt8Array, *rows: Any, **options: Any) -> Forward:
        if engine._bundle.manifest.model == "slow":
            over.wait(_SLOW_SECONDS * len(images))
        return forward(engine, images, *rows, **options)

    with (
        run_service(repository=tmp_path, instances=instances, canary_seconds=0) as service,
        ThreadPoolExecutor(_SLOW_CALLERS) as pool,
    ):
        monkeypatch.setattr(Engine, "forward", slowly)

        def call(model: str) -> float:
            began = time.monotonic()
            service.glow.Score(pb.ScoreRequest(model=pb.ModelSpec(name=model), images=raw(digits[:1])))
            return time.monotonic() - began

        def keep_calling() -> None:
            while not over.is_set():
                answers.append(call("slow"))

        callers = [pool.submit(keep_calling) for _ in range(_SLOW_CALLERS)]
        try:
            time.sleep(2 * _SLOW_SECONDS)
            before, began = len(answers), time.monotonic()
            durations = [call("digits") for _ in range(30)]
            while time.monotonic() < began + 4 * _SLOW_SECONDS:  # the slow one has its turns, too
                durations.append(call("digits"))
            assert len(answers) > before
        finally:
            over.set()
            for caller in callers:
                caller.result()
    assert median(durations) < _SLOW_SECONDS / 2
