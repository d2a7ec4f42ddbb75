"""Standard output and error of a service: nothing that is written to them holds the service up."""

from __future__ import annotations

import io
import os
import stat
from contextlib import suppress

from glowserve_service.observability.log_writer import LogWriter

STDERR = 2
# A line without an end is written in pieces of this length.
_LONGEST_LINE = 8192


def prepare() -> None:
    """To be called before libraries write. No standard descriptor may be closed.

    If standard error is a pipe, writing to a full one fails from now on instead of waiting. gRPC and ONNX Runtime write
    to it themselves: a client whose handshake fails would stop gRPC's thread. The pipe is opened again for that: its
    present state is shared with other processes. Where the system does not allow that, everything stays as it is.
    """
    if stat.S_ISFIFO(os.fstat(STDERR).st_mode):
        with suppress(OSError):  # another user's pipe, or no /proc
            reopened = os.open(f"/proc/self/fd/{STDERR}", os.O_WRONLY | os.O_NONBLOCK)
            os.dup2(reopened, STDERR)
            os.close(reopened)


class LogStream(io.TextIOBase):
    """Stands in for sys.stderr: Python's warnings and tracebacks become lines of the log's writer.

    Args:
        writer: where lines go.
    """

    def __init__(self, writer: LogWriter) -> None:
        self._writer = writer
        self._line = ""

    def write(self, text: str) -> int:
        """Passes on whole lines and keeps the rest."""
        lines, newline, rest = (self._line + text).rpartition("\n")
        if len(rest) > _LONGEST_LINE:
            lines, newline, rest = lines + newline + rest, "\n", ""
        self._line = rest
        if newline:
            self._writer.write_text(lines)
        return len(text)

    def writable(self) -> bool:
        """Yes."""
        return True

    def fileno(self) -> int:
        """Standard error's descriptor."""
        return STDERR
