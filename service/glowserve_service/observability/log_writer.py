"""A log handler that never waits for the reader of the log.

Records go through a bounded queue to a thread, which formats and writes them. If nobody reads the log, its pipe fills
up and then the queue does: further lines are dropped and counted. Once somebody reads again, one line says how many
lines are missing, in the place where they are missing.

Two things differ from the standard library's QueueHandler and QueueListener: a full queue is not an error, and closing
takes a bounded time.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Iterable, Iterator
from logging.handlers import QueueHandler
from queue import SimpleQueue

from glowserve import output
from glowserve.output import shortened
from glowserve_service.observability import log_context
from glowserve_service.observability.call_line import LONGEST_MESSAGE, CallLine

# Lines that wait for the reader. The thread holds up to as many more. A line takes 2 to 3 KB, unless it is a long one.
_CAPACITY = 2000
# The thread collects lines for so long and then writes them at once. At 2,000 lines/s, waking up for each of them would
# take the interpreter's lock away from the event loop 2,000 times a second.
_GATHER_SECONDS = 0.01
# How often the thread looks whether it is to give up while it waits for the reader.
_PATIENCE_SECONDS = 0.1
_FLUSH_SECONDS = 1.0

# Most characters of a traceback, which may quote what a caller sent, as a message may.
_LONGEST_TRACEBACK = 32_768

Item = logging.LogRecord | None


class LogWriter(QueueHandler):
    """Writes log records to a descriptor.

    Args:
        descriptor: where to write; None drops every line.
        formatter: turns records into lines, in the writer's thread.
        capacity: most lines that wait.
    """

    def __init__(
        self, descriptor: int | None, formatter: logging.Formatter, capacity: int = _CAPACITY
    ) -> None:
        # A SimpleQueue may be used from a destructor that interrupts a use of the same queue; a Queue would deadlock.
        self._items: SimpleQueue[Item] = SimpleQueue()
        super().__init__(self._items)
        self.setFormatter(formatter)
        self._descriptor = descriptor
        self._capacity = capacity
        self._give_up_at = math.inf
        self._closed = False
        # Each counter has one writer: the handler's lock protects the first, the others belong to the thread.
        self._not_queued = self._not_written = self._reported = 0
        self._thread = threading.Thread(target=self._run, name="log-writer", daemon=True)
        self._thread.start()

    @property
    def dropped(self) -> int:
        """Lines that were dropped since the start."""
        return self._not_queued + self._not_written

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        """Adds the call's ids to a record, and removes its references to arguments and stack frames.

        The record is changed in place: a copy would cost more than the rest of this method.
        """
        if not isinstance(record.msg, CallLine):
            record.msg, record.args = shortened(record.getMessage(), LONGEST_MESSAGE), None
        if record.exc_info and self.formatter:
            record.exc_text = shortened(self.formatter.formatException(record.exc_info), _LONGEST_TRACEBACK)
            record.exc_info = None
        context = log_context.current()
        if context.request_id:
            record.request_id = context.request_id
        if context.trace_id:
            record.trace_id = context.trace_id
        return record

    def enqueue(self, record: Item) -> None:
        """Adds a record, or drops it if the queue is full. Called with the handler's lock held."""
        if self._closed or self._items.qsize() >= self._capacity:
            self._not_queued += 1
        else:
            self._items.put(record)

    def write_text(self, text: str) -> None:
        """Adds each line of a text that was not logged, but written to standard error, as a record of its own."""
        for line in filter(None, text.split("\n")):
            self.handle(logging.LogRecord("stderr", logging.WARNING, "", 0, line, None, None))

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """Counts a record whose message and arguments do not fit each other. The base class would write to stderr."""
        self._not_queued += 1

    def close(self) -> None:
        """Writes what is queued, for a second at most; drops the rest, and whatever is logged from now on."""
        self.acquire()
        try:
            first, self._closed = not self._closed, True
        finally:
            self.release()
        if first:
            self._give_up_at = time.monotonic() + _FLUSH_SECONDS
            self._items.put(None)
            self._thread.join(_FLUSH_SECONDS + 2 * _PATIENCE_SECONDS)
        super().close()

    def _run(self) -> None:
        closing = False
        while not closing:
            first = self._items.get()
            if not self._closed:
                time.sleep(_GATHER_SECONDS)
            # Lines are dropped only while the queue is full, so those dropped until now came after all that are queued
            # now. This order of reading the two numbers keeps that true.
            not_queued = self._not_queued
            items = [first, *(self._items.get() for _ in range(self._items.qsize()))]
            closing = items[-1] is None
            self._write_lines(self._line(item) for item in items if item is not None)
            self._report(not_queued)

    def _write_lines(self, lines: Iterable[bytes]) -> None:
        for chunk, count in _chunks(lines):
            if not self._write(chunk):
                self._not_written += count

    def _report(self, not_queued: int) -> None:
        """Writes how many lines were dropped, if that is news."""
        news = not_queued + self._not_written - self._reported
        if news:
            message = f"{news} log lines are missing here: nobody read them in time"
            record = logging.LogRecord(__name__, logging.WARNING, "", 0, message, None, None)
            if self._write(self._line(record)):
                self._reported += news

    def _line(self, record: logging.LogRecord) -> bytes:
        try:
            text = self.format(record)
        except Exception as error:  # of an object's own __str__: the thread has to go on
            text = f"a log line of {record.name} could not be formatted: {type(error).__name__}"
        return (text + "\n").encode(errors="backslashreplace")

    def _write(self, data: bytes) -> bool:
        """Waits for the reader, until `close` limits that. False: it was not written."""
        if self._descriptor is None:
            return False
        try:
            while data and time.monotonic() < self._give_up_at:
                data = data[output.write(self._descriptor, data, _PATIENCE_SECONDS) :]
        except OSError:
            return False
        return not data


def _chunks(lines: Iterable[bytes]) -> Iterator[tuple[bytes, int]]:
    """Joins lines into writes that a pipe takes as a whole; with the number of lines in each."""
    chunk, count = b"", 0
    for line in lines:
        if chunk and len(chunk) + len(line) > output.PIPE_BUF:
            yield chunk, count
            chunk, count = b"", 0
        chunk += line
        count += 1
    if chunk:
        yield chunk, count
