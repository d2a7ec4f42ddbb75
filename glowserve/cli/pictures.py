"""The pictures that a command is given: files, Parquet files of pictures, and folders of either."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from glowserve.cli.failure import Failure
from glowserve.cli.picture_tables import SUFFIX, PictureTable
from glowserve.folders import FILE_SUFFIXES, FolderPictures, find_pictures, unpacking
from glowserve.output import printable, say
from glowserve.results import ImageError


class GivenPictures:
    """The paths of pictures, in order. Of a folder it holds the names alone, and makes a path when it is asked for.

    A row of a Parquet file is a picture, too; `open_picture` reads it. In a folder with pictures of its own, Parquet
    files are left out.

    Args:
        paths: files and folders.
        own: files and folders that the command writes, which are left out of folders that they lie in.

    Raises:
        Failure: a folder has no pictures, or cannot be listed.
    """

    def __init__(self, paths: Sequence[Path], own: Sequence[Path] = ()) -> None:
        self._given = [part for path in paths for part in _parts(path, own)]
        self._folders = [each for each in self._given if isinstance(each, FolderPictures)]

    def __len__(self) -> int:
        return sum(_count(each) for each in self._given)

    def __iter__(self) -> Iterator[str]:
        for each in self._given:
            if isinstance(each, FolderPictures):
                yield from (str(each.folder / name) for name in each.names)
            elif isinstance(each, PictureTable):
                yield from each.names()
            else:
                yield str(each)

    @property
    def complete(self) -> bool:
        """Whether every subfolder could be listed."""
        return not any(folder.unreadable for folder in self._folders)

    def report_left_out(self) -> None:
        """Says on standard error what the folders hold besides pictures."""
        for folder in self._folders:
            if not folder.names:
                folder.others.pop(SUFFIX, None)  # they are read
            if left_out := folder.left_out():
                say(sys.stderr, f"glowserve: folder {printable(str(folder.folder))}: left out {left_out}\n")


def explanation(error: ImageError) -> str:
    """Why a file has no scores, and what to do if it is an archive."""
    hint = unpacking(Path(error.name))
    return f"{error.message}; {hint}" if hint else error.message


def _parts(path: Path, own: Sequence[Path]) -> Iterator[Path | PictureTable | FolderPictures]:
    """What a path leads to."""
    if path.is_dir():
        folder = _find(path)
        above = {path.resolve(), *path.resolve().parents}
        own = [each for each in own if each.resolve() not in above]
        folder.names = [name for name in folder.names if not _leads_to(path / name, own)]
        if not folder.names:
            tables = (file for file in path.rglob(f"*{SUFFIX}") if _is_visible(file.relative_to(path)))
            yield from map(PictureTable, sorted(file for file in tables if not _leads_to(file, own)))
        yield folder
    elif path.suffix.lower() == SUFFIX and path.is_file():
        yield PictureTable(path)
    else:
        yield path


def _leads_to(file: Path, own: Sequence[Path]) -> bool:
    """Whether a path leads to one of some files, or into one of some folders. Asks the disk about few paths."""
    return any(each.name in file.parts and file.resolve().is_relative_to(each.resolve()) for each in own)


def _is_visible(path: Path) -> bool:
    return not any(part.startswith(".") for part in path.parts)


def _count(part: Path | PictureTable | FolderPictures) -> int:
    if isinstance(part, FolderPictures):
        return len(part.names)
    return len(part) if isinstance(part, PictureTable) else 1


def _find(folder: Path) -> FolderPictures:
    """The pictures of a folder, or none if it has Parquet files alone."""
    try:
        found = find_pictures(folder)
    except OSError as error:
        raise Failure(f"folder {printable(str(folder))} cannot be listed: {error.strerror}", 2) from error
    if not found.names and not found.others[SUFFIX]:
        left_out = found.left_out()
        raise Failure(
            f"folder {printable(str(folder))} holds no pictures; looked for {', '.join(sorted(FILE_SUFFIXES))}, "
            "and for .parquet" + (f"; left out {left_out}" if left_out else ""),
            2,
        )
    return found
