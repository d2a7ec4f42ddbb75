"""The log's queue and thread, with pipes of their own. test_unread_log.py has the same with real services."""

from __future__ import annotations

import gc
import logging
import os
import re
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from glowserve_service.observability import log_context
from glowserve_service.observability.log_context import LogContext
from glowserve_service.observability.log_writer import LogWriter
from glowserve_service.observability.logs import TextFormatter

from glowserve import output
from tests.service.pipes import fill, full_pipe, lines_until
from tests.service.wire import wait_for

Make = Callable[..., tuple[logging.Logger, LogWriter]]
Block = Callable[[logging.Logger], None]
CAPACITY = 10


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """Makes a logger that writes to a descriptor, or to none; its lines are `LEVEL LOGGER: MESSAGE`."""
    writers: list[LogWriter] = []
    logger = logging.getLogger("of.this.test")
    monkeypatch.setattr(logger, "propagate", False)
    logger.setLevel("DEBUG")

    def made(descriptor: int | None) -> tuple[logging.Logger, LogWriter]:
        formatter = logging.Formatter("%(levelname)s %(name)s: %(message)s")
        writers.append(LogWriter(descriptor, formatter, CAPACITY))
        logger.addHandler(writers[-1])
        return logger, writers[-1]

    yield made
    for writer in writers:
        logger.removeHandler(writer)
        writer.close()


@pytest.fixture
def block(monkeypatch: pytest.MonkeyPatch) -> Callable[[logging.Logger], None]:
    """Logs one line, and waits until the thread writes it: later lines stay in the queue if the pipe is full."""
    writing = threading.Event()

    def write(*arguments: Any) -> int:
        writing.set()
        return write_for_real(*arguments)

    write_for_real = output.write
    monkeypatch.setattr(output, "write", write)

    def block_with(log: logging.Logger) -> None:
        writing.clear()
        log.info("first")
        assert writing.wait(60)

    return block_with


def test_lines_are_written_in_their_order(make: Make) -> None:
    with full_pipe() as (read, write):
        os.read(read, 1 << 20)
        log, writer = make(write)
        for i in range(5):
            log.info("line %d of %s", i, "mine")
        assert lines_until(read, "line 4") == [f"INFO of.this.test: line {i} of mine" for i in range(5)]
        assert writer.dropped == 0


def test_what_a_full_queue_drops_is_counted_and_reported_where_it_is_missing(
    make: Make, block: Block
) -> None:
    with full_pipe() as (read, write):
        log, writer = make(write)
        block(log)
        for i in range(CAPACITY + 7):
            log.info("line %d", i)
        assert writer.dropped == 7
        lines = lines_until(read, "missing")
        log.info("after")
        lines += lines_until(read, "after")
    assert [line.rpartition(": ")[2] for line in lines[: 1 + CAPACITY]] == [
        "first",
        *(f"line {i}" for i in range(CAPACITY)),
    ]
    assert lines[1 + CAPACITY :] == [
        "WARNING glowserve_service.observability.log_writer: "
        "7 log lines are missing here: nobody read them in time",
        "INFO of.this.test: after",
    ]
    assert writer.dropped == 7


def test_each_gap_is_reported_once(make: Make, block: Block) -> None:
    with full_pipe() as (read, write):
        log, writer = make(write)
        found = []
        for gap in (3, 5):
            block(log)
            for i in range(CAPACITY + gap):
                log.info("line %d", i)
            found += lines_until(read, "missing")
            fill(write)
    assert re.findall(r"(\d+) log lines are missing", "\n".join(found)) == ["3", "5"]
    assert writer.dropped == 8


@pytest.mark.parametrize("blocking", [True, False])
def test_logging_and_closing_take_a_bounded_time_while_nobody_reads(
    make: Make, block: Block, blocking: bool
) -> None:
    with full_pipe() as (_, write):
        os.set_blocking(write, blocking)
        log, writer = make(write)
        block(log)
        began = time.monotonic()
        for i in range(10_000):
            log.info("line %d", i)
        logged = time.monotonic() - began
        writer.close()
        closed = time.monotonic() - began - logged
        assert logged < 5
        assert 0.9 < closed < 10
        wait_for(lambda: not writer._thread.is_alive())
    assert writer.dropped == 10_001


def test_closing_writes_what_is_queued(make: Make) -> None:
    with full_pipe() as (read, write):
        os.read(read, 1 << 20)
        log, writer = make(write)
        for i in range(CAPACITY):
            log.info("line %d", i)
        writer.close()
        assert len(lines_until(read, f"line {CAPACITY - 1}")) == CAPACITY
        log.info("too late")
    assert writer.dropped == 1


def test_lines_to_a_descriptor_without_a_reader_are_counted(make: Make) -> None:
    with full_pipe() as (read, write):
        log, writer = make(write)
        os.close(read)
        log.info("to nobody")
        wait_for(lambda: writer.dropped == 1)
        os.close(write)
        log.info("to a closed descriptor")
        wait_for(lambda: writer.dropped == 2)


def test_lines_to_no_descriptor_are_counted(make: Make) -> None:
    log, writer = make(None)
    log.info("to nobody")
    wait_for(lambda: writer.dropped == 1)


def test_lines_longer_than_a_pipe_arrive_whole(make: Make) -> None:
    with full_pipe() as (read, write):
        log, _ = make(write)
        long = 20_000 * "x"
        try:
            raise ValueError(long)
        except ValueError:
            log.exception("failed")
        log.info("short")
        lines = lines_until(read, "short")
    assert [line.rpartition(": ")[2] for line in lines[-2:]] == [long, "short"]


def test_a_line_has_the_ids_that_were_bound_when_it_was_logged(make: Make) -> None:
    with full_pipe() as (read, write):
        log, writer = make(write)
        writer.setFormatter(TextFormatter())
        log_context.bind(LogContext("one", "abc"))
        log.info("of one")
        log_context.bind(LogContext("two"))
        log.info("of two")
        log_context.bind(LogContext())
        log.info("of nobody")
        lines = lines_until(read, "of nobody")
    assert [line.partition("test: ")[2] for line in lines] == ["[one] of one", "[two] of two", "of nobody"]


def test_a_queued_line_keeps_no_argument_and_no_frame_alive(make: Make, block: Block) -> None:
    class Image:
        pass

    def fail() -> None:
        image = Image()
        images.append(weakref.ref(image))
        raise ValueError(image)

    images: list[weakref.ref[Image]] = []
    with full_pipe() as (_, write):
        log, writer = make(write)
        block(log)
        try:
            fail()
        except ValueError as error:
            log.exception("failed with %s", error)
        gc.collect()
        assert writer._items.qsize() == 1
        assert images[0]() is None


def test_a_message_that_does_not_fit_its_arguments_is_counted(
    make: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    _, writer = make(None)
    writer.handle(logging.LogRecord("of.this.test", logging.INFO, "", 0, "%d images", ("no",), None))
    assert writer.dropped == 1
    assert capsys.readouterr().err == ""


def test_a_record_that_cannot_be_formatted_does_not_end_the_log(make: Make) -> None:
    class Odd(logging.Formatter):
        def format(self, record: Any) -> str:
            if record.msg == "odd":
                raise KeyError(record.msg)
            return str(record.msg)

    with full_pipe() as (read, write):
        log, writer = make(write)
        writer.setFormatter(Odd())
        log.info("odd")
        log.info("even")
        assert lines_until(read, "even") == [
            "a log line of of.this.test could not be formatted: KeyError",
            "even",
        ]
