"""glibc's arenas, which the threads of a service share."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parent / "programs" / "arenas.py"


def arenas(*arguments: str, **variables: str) -> int:
    """What the program prints."""
    environment = {name: value for name, value in os.environ.items() if name != "MALLOC_ARENA_MAX"}
    command = [sys.executable, str(PROGRAM), *arguments]
    done = subprocess.run(
        command, env=environment | variables, capture_output=True, text=True, timeout=60, check=True
    )
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc has arenas")
def test_threads_share_two_arenas_unless_a_variable_sets_another_limit() -> None:
    assert arenas() > 2
    assert arenas("share") == 2
    assert arenas("share", MALLOC_ARENA_MAX="4") == 4
