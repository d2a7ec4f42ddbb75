"""Writing text that people read: to a descriptor whose reader may be slow, absent or gone, and to a terminal."""

from __future__ import annotations

import math
import os
import select
import sys
import time
from typing import TextIO

_STDOUT, _STDERR = 1, 2
# POSIX: a pipe takes that many bytes as a whole or not at all. Linux calls a pipe writable when so many fit, so that
# a write of no more does not block, although the descriptor is a blocking one.
PIPE_BUF = getattr(select, "PIPE_BUF", 512)


def printable(text: str) -> str:
    r"""The text as one line that any terminal shows as it is.

    Strings from elsewhere (a request, a server, the name of a file) may hold characters that a terminal or a reader of
    lines obeys: line ends of every kind, escape sequences, marks that reverse the direction of writing, surrogates.
    Each becomes the escape that Python writes for it, such as \n, \x1b or \u202e. Letters of all scripts stay.
    """
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def shortened(text: str, longest: int) -> str:
    """The text, or its beginning and its end, and how many characters between them are left out."""
    if len(text) <= longest:
        return text
    half = longest // 2
    return f"{text[:half]}... {len(text) - 2 * half} characters are left out ...{text[-half:]}"


def counted(n: int, noun: str) -> str:
    """A number of things: "1 image", "0 images"."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def open_closed_streams() -> None:
    """Opens /dev/null in place of the standard streams that are closed. To be called before files are opened.

    Else the next file or socket would get the number of a standard stream, and with it what libraries write to that.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= _STDERR:
        pass
    os.close(descriptor)
    for name, number in (("stdout", _STDOUT), ("stderr", _STDERR)):
        if getattr(sys, name) is None:  # Python found it closed when it started
            setattr(sys, name, open(number, "w", closefd=False))  # noqa: SIM115  # as long as the process


def write(descriptor: int, data: bytes, seconds: float) -> int:
    """Writes until everything is written or the time is up.

    Args:
        descriptor: a pipe, file, socket or terminal; blocking or not.
        data: what to write.
        seconds: how long to wait for a reader at most; infinity is allowed.

    Returns:
        How many bytes were written.

    Raises:
        OSError: the descriptor is closed (EBADF), its reader is gone (EPIPE), or the disk is full (ENOSPC).
    """
    end = time.monotonic() + seconds
    written = 0
    while written < len(data):
        left = end - time.monotonic()
        if not _writable(descriptor, max(left, 0)):
            return written
        try:
            written += os.write(descriptor, data[written : written + PIPE_BUF])
        except BlockingIOError:  # another process filled the pipe first
            if left <= 0:
                return written
    return written


def _writable(descriptor: int, seconds: float) -> bool:
    """Whether a write would not block; also true where it would fail."""
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    return bool(poll.poll(None if math.isinf(seconds) else math.ceil(1000 * seconds)))


def say(stream: TextIO | None, text: str, seconds: float = 1.0) -> None:
    """Writes a text to sys.stderr or sys.stdout; gives up after some time, and where the stream is closed.

    Nothing is left in the stream's own buffer, which Python would wait for when it ends.

    Args:
        stream: None if Python found it closed when it started.
        text: whole lines.
        seconds: how long to wait for a reader at most.
    """
    if stream is None:
        return
    try:
        descriptor = stream.fileno()
    except (OSError, ValueError):  # in memory, or closed
        descriptor = -1
    try:
        if descriptor < 0 or not hasattr(select, "poll"):  # Windows has none
            stream.write(text)
        else:
            write(descriptor, text.encode(errors="backslashreplace"), seconds)
    except (OSError, ValueError):
        pass
