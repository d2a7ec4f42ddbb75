"""Writing for a bounded time, and sentences to streams that nobody reads."""

from __future__ import annotations

import io
import os
import sys
import threading
import time

import pytest

from glowserve import output
from tests.service.pipes import full_pipe, lines_until

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there is no select.poll")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("übung 日本語 الصور 🙂 a\\b", "übung 日本語 الصور 🙂 a\\b"),
        ("a\nb\r\vc\fd\0", "a\\nb\\r\\x0bc\\x0cd\\x00"),
        ("a\x85b\u2028c\u2029d", "a\\x85b\\u2028c\\u2029d"),
        ("\x1b[2J\x9b31m\x7f\b", "\\x1b[2J\\x9b31m\\x7f\\x08"),
        ("a\u202egnp.exe\u2066\u200b", "a\\u202egnp.exe\\u2066\\u200b"),
        (os.fsdecode(b"a\xff.png"), "a\\udcff.png"),
    ],
)
def test_what_a_terminal_would_obey_is_shown_as_an_escape(text: str, shown: str) -> None:
    assert output.printable(text) == shown
    assert len(f"{shown}".splitlines()) == 1


def test_one_thing_is_counted_in_the_singular() -> None:
    assert [output.counted(n, "heat map") for n in (0, 1, 2)] == ["0 heat maps", "1 heat map", "2 heat maps"]


@pytest.mark.parametrize("blocking", [True, False])
def test_writing_to_a_full_pipe_ends_when_the_time_is_up(blocking: bool) -> None:
    with full_pipe() as (_, write):
        os.set_blocking(write, blocking)
        began = time.monotonic()
        assert output.write(write, b"x" * 100_000, 0.2) == 0
        assert 0.19 < time.monotonic() - began < 10


@pytest.mark.parametrize("blocking", [True, False])
def test_what_fits_is_written_and_the_rest_is_not(blocking: bool) -> None:
    with full_pipe() as (read, write):
        os.set_blocking(write, blocking)
        room = len(os.read(read, 4 * output.PIPE_BUF))
        written = output.write(write, b"x" * 100_000, 0)
        assert 0 < written <= room


@pytest.mark.parametrize("blocking", [True, False])
def test_a_slow_reader_gets_everything(blocking: bool) -> None:
    with full_pipe() as (read, write):
        os.set_blocking(write, blocking)
        lines: list[str] = []
        reader = threading.Thread(target=lambda: lines.extend(lines_until(read, "the end")))
        reader.start()
        data = b"x" * 500_000 + b"\nthe end\n"
        assert output.write(write, data, float("inf")) == len(data)
        reader.join(60)
    assert lines == ["x" * 500_000, "the end"]


def test_a_reader_that_is_gone_and_a_closed_descriptor_are_errors() -> None:
    with full_pipe() as (read, write):
        os.close(read)
        with pytest.raises(BrokenPipeError):
            output.write(write, b"x", 60)
        os.close(write)
        with pytest.raises(OSError, match="Bad file descriptor"):
            output.write(write, b"x", 60)


def test_a_sentence_leaves_nothing_in_the_streams_buffer() -> None:
    """Python would wait for its reader when it ends."""
    with full_pipe() as (read, write):
        stream = os.fdopen(write, "w")
        output.say(stream, "to nobody\n", seconds=0.1)
        os.read(read, 1 << 20)
        stream.close()
        assert os.read(read, 100) == b""


def test_a_sentence_to_a_stream_that_is_closed_or_has_no_reader_is_given_up() -> None:
    output.say(None, "to nobody\n")
    closed = io.StringIO()
    closed.close()
    output.say(closed, "to nobody\n")
    with full_pipe() as (read, write):
        os.close(read)
        output.say(os.fdopen(write, "w", closefd=False), "to nobody\n")


def test_a_sentence_to_a_stream_in_memory_is_written_to_it() -> None:
    stream = io.StringIO()
    output.say(stream, "one sentence\n")
    assert stream.getvalue() == "one sentence\n"
