"""Stops the engines of this process, so that images wait in queues for as long as a test needs them to."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from glowserve.runtime.engine import Engine


@contextmanager
def held(direction: str = "forward") -> Iterator[threading.Event]:
    """Runs that begin inside the block end once the event is set, or with the block."""
    go_on, run = threading.Event(), getattr(Engine, direction)

    def wait_and_run(engine: Engine, *rows: Any, **options: Any) -> Any:
        assert go_on.wait(60)
        return run(engine, *rows, **options)

    with mock.patch.object(Engine, direction, wait_and_run):
        try:
            yield go_on
        finally:
            go_on.set()
