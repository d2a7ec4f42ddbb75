"""The pictures that a command is given: files, and folders of pictures."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from glowserve.cli.failure import Failure
from glowserve.folders import FILE_SUFFIXES, FolderPictures, find_pictures, unpacking
from glowserve.output import printable, say
from glowserve.results import ImageError


class GivenPictures:
    """The paths of pictures, in order. Of a folder it holds the names alone, and makes a path when it is asked for.

    Args:
        paths: files and folders.

    Raises:
        Failure: a folder has no pictures, or cannot be listed.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._given = [_find(path) if path.is_dir() else path for path in paths]
        self._folders = [each for each in self._given if isinstance(each, FolderPictures)]

    def __len__(self) -> int:
        return len(self._given) + sum(len(folder.names) - 1 for folder in self._folders)

    def __iter__(self) -> Iterator[str]:
        for each in self._given:
            if isinstance(each, FolderPictures):
                yield from (str(each.folder / name) for name in each.names)
            else:
                yield str(each)

    @property
    def complete(self) -> bool:
        """Whether every subfolder could be listed."""
        return not any(folder.unreadable for folder in self._folders)

    def report_left_out(self) -> None:
        """Says on standard error what the folders hold besides pictures."""
        for folder in self._folders:
            if left_out := folder.left_out():
                say(sys.stderr, f"glowserve: folder {printable(str(folder.folder))}: left out {left_out}\n")


def explanation(error: ImageError) -> str:
    """Why a file has no scores, and what to do if it is an archive."""
    hint = unpacking(Path(error.name))
    return f"{error.message}; {hint}" if hint else error.message


def _find(folder: Path) -> FolderPictures:
    try:
        found = find_pictures(folder)
    except OSError as error:
        raise Failure(f"folder {printable(str(folder))} cannot be listed: {error.strerror}", 2) from error
    if not found.names:
        left_out = found.left_out()
        raise Failure(
            f"folder {printable(str(folder))} holds no pictures; looked for {', '.join(sorted(FILE_SUFFIXES))}"
            + (f"; left out {left_out}" if left_out else ""),
            2,
        )
    return found
