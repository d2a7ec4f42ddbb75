"""Lets the CPU stand for a GPU, for tests of what an engine does on a GPU besides computing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from glowserve.runtime.buffers import BoundSession
from glowserve.runtime.config import RuntimeConfig
from glowserve.runtime.sessions import Cancellation, Graph, open_sessions


def use_cpu_for_gpu(monkeypatch: pytest.MonkeyPatch) -> list[BoundSession]:
    """Makes engines for "cuda" and "tensorrt" run on the CPU; their bound sessions are appended to the list."""
    bound = list[BoundSession]()

    class OnCpu(BoundSession):
        def __init__(self, session: Any, device: str, sizes: Sequence[int], *, capture: bool) -> None:
            super().__init__(session, "cpu", sizes, capture=capture)
            bound.append(self)

    def open_on_cpu(
        graphs: Sequence[Graph], config: RuntimeConfig, cancellation: Cancellation
    ) -> tuple[str, list[Any]]:
        return config.device, open_sessions(graphs, replace(config, device="cpu"), cancellation)[1]

    monkeypatch.setattr("glowserve.runtime.engine.BoundSession", OnCpu)
    monkeypatch.setattr("glowserve.runtime.engine.open_sessions", open_on_cpu)
    return bound


def is_closed(bound: BoundSession) -> bool:
    """Whether a session has been freed, and its thread has ended."""
    return bound._session is None and not any(thread.is_alive() for thread in bound._thread._threads)
