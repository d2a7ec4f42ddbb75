"""What a service does to its standard streams before it starts, in processes of their own."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from glowserve_service.observability.standard_streams import LogStream

from tests.service.pipes import full_pipe

PROGRAM = [sys.executable, str(Path(__file__).parents[1] / "programs" / "standard_descriptors.py")]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def prepared(*command: str, **streams: Any) -> dict[str, Any]:
    """What the program prints."""
    done = subprocess.run([*command, *PROGRAM], stdout=subprocess.PIPE, timeout=60, check=True, **streams)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_a_closed_descriptor_becomes_dev_null_so_that_no_socket_gets_its_number() -> None:
    found = prepared("sh", "-c", 'exec "$@" <&- 2>&-', "sh")
    assert found["target"] == "/dev/null"
    assert found["next"] > 2


def test_a_pipe_becomes_non_blocking_for_the_service_alone() -> None:
    with full_pipe() as (_, write):
        found = prepared(stderr=write)
        assert found["target"].startswith("pipe:")
        assert not found["blocking"]
        assert os.get_blocking(write)


def test_files_and_sockets_stay_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("before\n")
    with path.open("a") as file:
        assert prepared(stderr=file)["blocking"]
    assert path.read_text() == "before\nwritten to standard error\n"
    ours, its = socket.socketpair()
    with ours, its:
        assert prepared(stderr=its)["blocking"]
        assert ours.recv(100) == b"written to standard error\n"


class Lines:
    """In place of a LogWriter."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def write_text(self, text: str) -> None:
        self.texts.append(text)


def test_text_for_stderr_becomes_whole_lines() -> None:
    lines: Any = Lines()
    stream = LogStream(lines)
    print("a", "b", file=stream)
    stream.write("no end")
    assert lines.texts == ["a b"]
    stream.write(" yet\ntwo\nthree")
    assert lines.texts == ["a b", "no end yet\ntwo"]


def test_text_without_an_end_is_passed_on_in_pieces() -> None:
    lines: Any = Lines()
    stream = LogStream(lines)
    for _ in range(20):
        stream.write("x" * 1000)
    stream.write("\n")
    assert "".join(lines.texts) == "x" * 20_000
    assert max(map(len, lines.texts)) < 10_000
