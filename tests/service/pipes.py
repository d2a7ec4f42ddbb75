"""Pipes whose reader is slow, absent or gone, as tests of the log and of the command line need them."""

from __future__ import annotations

import os
import select
from collections.abc import Iterator
from contextlib import contextmanager, suppress


@contextmanager
def full_pipe() -> Iterator[tuple[int, int]]:
    """The two ends of a pipe into which not one byte more fits. Both are closed afterwards, unless they are already."""
    read, write = os.pipe()
    fill(write)
    try:
        yield read, write
    finally:
        for descriptor in (read, write):
            with suppress(OSError):
                os.close(descriptor)


def fill(write: int) -> None:
    """Fills a pipe with lines of dots."""
    os.set_blocking(write, False)
    for size in (4096, 1):
        with suppress(BlockingIOError):
            while True:
                os.write(write, b"." * (size - 1) + b"\n")
    os.set_blocking(write, True)


def lines_until(read: int, last: str) -> list[str]:
    """Reads lines until one has that in it, without those of `fill`."""
    text = b""
    while last.encode() not in text or not text.endswith(b"\n"):
        assert select.select([read], [], [], 60)[0], text.decode()
        data = os.read(read, 1 << 16)
        assert data, text.decode()
        text += data
    return [line for line in text.decode().splitlines() if line.strip(".")]
