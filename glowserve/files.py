"""Files and folders that appear under their names only once they are complete and on the disk."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

_STAGING_PREFIX = ".staging-"
# A process locks its staging folder well within this time of making it.
_LOCKED_WITHIN_SECONDS = 60.0


@contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """Opens a temporary file that replaces `path` when the block ends, and is deleted when the block raises.

    The content is fsynced before the rename, so that not even a power cut leaves half a file.
    """
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    part = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.chmod(0o644)
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    _sync(path.parent)


@contextmanager
def staging_directory(parent: Path) -> Iterator[Path]:
    """Makes an empty hidden folder in `parent`, to be filled and then passed to `publish_directory`.

    What the block leaves in it is deleted at the end. Staging folders in `parent` whose process was killed are
    deleted first: they are old, and no process holds their lock.
    """
    _delete_abandoned(parent)
    path = Path(tempfile.mkdtemp(prefix=_STAGING_PREFIX, dir=parent))
    path.chmod(0o755)
    lock = os.open(path, os.O_RDONLY)
    try:
        with suppress(OSError):  # this file system has no locks
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield path
    finally:
        os.close(lock)
        shutil.rmtree(path, ignore_errors=True)


def publish_directory(staged: Path, target: Path) -> None:
    """Makes a folder and its content readable by all users, fsyncs it, and renames it.

    Args:
        staged: the folder of a `staging_directory`, or a folder in it.
        target: the new name, on the same file system.

    Raises:
        FileExistsError: `target` exists and is not an empty folder. `staged` is unchanged, so that the caller can
            publish it under another name.
    """
    for folder, _, names in os.walk(staged):
        for name in names:
            Path(folder, name).chmod(0o644)
            _sync(Path(folder, name))
        Path(folder).chmod(0o755)
        _sync(Path(folder))
    try:
        os.rename(staged, target)  # noqa: PTH104  # Path.rename does not promise to refuse a full folder
    except OSError as error:
        if target.exists():
            raise FileExistsError(f"{target} exists") from error
        raise
    _sync(target.parent)


def _delete_abandoned(parent: Path) -> None:
    for path in parent.glob(f"{_STAGING_PREFIX}*"):
        with suppress(OSError):  # another process deleted it or holds its lock, or we may not delete it
            if time.time() - path.stat().st_mtime < _LOCKED_WITHIN_SECONDS:
                continue
            lock = os.open(path, os.O_RDONLY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path)
            finally:
                os.close(lock)


def _sync(path: Path) -> None:
    """Fsyncs the names in a folder, or the content of a file."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
