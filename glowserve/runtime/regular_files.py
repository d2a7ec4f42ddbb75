"""Reads whole files that somebody else put there: regular files only, of a bounded size, without waiting."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

_KINDS = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}
# Opening a FIFO would wait for its writer. Windows has no such flags.
_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0) | getattr(os, "O_BINARY", 0)


def read_regular_file(path: Path, max_bytes: int) -> bytes:
    """The content of a file. Symbolic links are followed: Kubernetes mounts ConfigMaps as links.

    Raises:
        OSError: the file cannot be read, is no regular file, or has more than `max_bytes`; `strerror` says which.
    """
    _check(path, path.stat(), max_bytes)  # opening a device can have effects of its own
    with os.fdopen(os.open(path, _FLAGS), "rb") as file:
        _check(path, os.fstat(file.fileno()), max_bytes)
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:  # it has grown since
        raise _too_large(path, len(data), max_bytes)
    return data


def _check(path: Path, status: os.stat_result, max_bytes: int) -> None:
    kind = stat.S_IFMT(status.st_mode)
    if kind != stat.S_IFREG:
        found = _KINDS.get(kind, "a special file")
        raise OSError(errno.EINVAL, f"it is {found} and must be a regular file", str(path))
    if status.st_size > max_bytes:
        raise _too_large(path, status.st_size, max_bytes)


def _too_large(path: Path, size: int, max_bytes: int) -> OSError:
    return OSError(errno.EFBIG, f"it has {size} bytes and may have {max_bytes}", str(path))
