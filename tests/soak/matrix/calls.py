"""Calls of three kinds that end in different ways, made by processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CALLS = int(os.environ.get("GLOWSERVE_MATRIX_CALLS", "200"))
"""Per case."""

# Images wait this long for a batch: time to cancel, to miss a deadline, to be killed. Then all run as one batch.
_PATIENT = {"max_batch_size": 4096, "max_queue_size": 16_384, "max_queue_delay_ms": 2500.0}
# Streams have many responses, and always more work.
_BUSY = {"max_batch_size": 8, "max_queue_size": 16_384}
SETTINGS: dict[str, dict[str, Any]] = {"unary": _PATIENT, "streaming": _BUSY, "bidirectional": _PATIENT}
"""By kind of call: the settings of the server."""

STATUSES = {
    "finishes": {"OK"},
    "cancelled": {"CANCELLED"},
    # Some are refused at once, as they would wait for longer than their deadline.
    "deadline": {"DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED"},
    "error": {"INVALID_ARGUMENT", "FAILED_PRECONDITION", "NOT_FOUND"},
}
"""By ending: the statuses that a call may end with."""


@contextmanager
def caller_process(
    target: str, kind: str, ending: str, calls: int = CALLS
) -> Iterator[subprocess.Popen[str]]:
    """A process that has opened all its calls; it is killed at the end of the block if it still runs.

    Args:
        target: HOST:PORT.
        kind: a key of `SETTINGS`.
        ending: a key of `STATUSES`; or "stopped" for calls that a server finishes when it stops; or "killed" for calls
            that do not end by themselves.
        calls: how many.
    """
    script = Path(__file__).with_name("client.py")
    command = [sys.executable, str(script), target, kind, ending, str(calls)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "open\n"
            yield process
        finally:
            process.kill()


def count_statuses(process: subprocess.Popen[str]) -> dict[str, int]:
    """Waits until all calls of a process have ended; the number of calls by status."""
    written, _ = process.communicate(timeout=240)
    counts: dict[str, int] = json.loads(written)
    return counts
