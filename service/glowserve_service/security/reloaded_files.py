"""Files that are read again when they change."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

log = logging.getLogger(__name__)

T = TypeVar("T")


class ReloadedFiles(Generic[T]):
    """The content of files, which are read again when one has changed.

    If the changed files cannot be read, that is logged, and the old content stays.

    Args:
        paths: the files.
        read: reads them, or raises ValueError.

    Raises:
        ValueError: they cannot be read now.
    """

    def __init__(self, paths: Sequence[Path], read: Callable[[], T]) -> None:
        self._paths = paths
        self._read = read
        self._lock = threading.Lock()
        self._seen = self._state()
        self._value = read()

    def current(self) -> T:
        """The content; the same object until it changes. From any thread."""
        with self._lock:
            state = self._state()
            if state != self._seen:
                self._reload(state)
            return self._value

    def _reload(self, state: object) -> None:
        names = ", ".join(map(str, self._paths))
        try:
            value = self._read()
        except ValueError as error:
            log.error("changed files are not used, those read before are: %s", error)
        else:
            if self._state() != state:
                # Perhaps some files are old and some new; the next call reads them again.
                return
            self._value = value
            log.info("read again: %s", names)
        self._seen = state

    def _state(self) -> object:
        def one(path: Path) -> object:
            try:
                found = path.stat()
            except OSError:
                return None
            return found.st_mtime_ns, found.st_size, found.st_ino

        return [one(path) for path in self._paths]
