"""Which files of a folder are pictures: one rule for training and for scoring.

A picture is a file with one of `FILE_SUFFIXES`, or one without a suffix that begins like a picture. Subfolders are
searched, too. Links are followed, but nothing is read twice: a picture that two paths lead to could be trained on and
held out at once. What lies in a folder and is left out is counted.
"""

from __future__ import annotations

import os
import stat
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from glowserve.images import FILE_FORMATS
from glowserve.output import printable

FILE_SUFFIXES = frozenset(
    {
        *(".png", ".apng"),
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".jfi", ".jif", ".pjpeg", ".pjp", ".mpo"),
        *(".webp", ".gif", ".bmp", ".tif", ".tiff"),
        *(".ppm", ".pgm", ".pbm", ".pnm"),
    }
)
"""The suffixes, in lower case, of the files of a folder that are pictures."""

ARCHIVE_SUFFIXES = frozenset({".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".zst", ".7z", ".rar"})
"""The suffixes, in lower case, of archives, which are not read."""

# Files and folders of operating systems, in lower case. Those whose name begins with a dot are hidden as well.
_SYSTEM_NAMES = frozenset(
    {
        *("thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "@eadir", "lost+found"),
        *("$recycle.bin", "system volume information"),
    }
)
# Messages name at most this many files, and suffixes.
_MOST_NAMED = 3


@dataclass
class FolderPictures:
    """The pictures of a folder, and what was left out."""

    folder: Path
    """The folder."""

    names: list[str] = field(default_factory=list)
    """The paths of the pictures from the folder, ordered by folder and name. The order depends on the names alone."""

    hidden: int = 0
    """Hidden files and folders, and those of operating systems."""

    others: Counter[str] = field(default_factory=Counter)
    """Files that are not pictures, by suffix in lower case."""

    special: int = 0
    """Pipes, sockets and devices: reading them might never end."""

    repeated: list[str] = field(default_factory=list)
    """Links to pictures and folders that are read under another name."""

    unreadable: list[str] = field(default_factory=list)
    """Folders that cannot be listed, and links that might be folders and lead nowhere, each with the reason."""

    def left_out(self) -> str:
        """What was left out and why, such as "2 hidden, 14 .txt"; "" if nothing was."""
        common = sorted(self.others.items(), key=lambda item: (-item[1], item[0]))[:_MOST_NAMED]
        parts = [(n, printable(suffix) or "without suffix") for suffix, n in common]
        parts += [
            (self.others.total() - sum(n for _, n in common), "of other kinds"),
            (self.hidden, "hidden"),
            (self.special, "neither file nor folder"),
            (len(self.repeated), "repeated by links"),
            (len(self.unreadable), f"unreadable: {self._named()}"),
        ]
        return ", ".join(f"{n} {what}" for n, what in parts if n)

    def _named(self) -> str:
        named, more = sorted(self.unreadable)[:_MOST_NAMED], len(self.unreadable) - _MOST_NAMED
        return ", ".join(named) + (f" and {more} more" if more > 0 else "")


def find_pictures(folder: Path) -> FolderPictures:
    """The pictures of a folder and its subfolders.

    Raises:
        OSError: the folder itself cannot be listed.
    """
    found = FolderPictures(folder)
    os.scandir(folder).close()
    _Search(found).run()
    found.names.sort(key=lambda name: name.split("/"))
    return found


def unpacking(path: Path) -> str | None:
    """How to unpack an archive of pictures; None if the file's name is not that of an archive."""
    if path.suffix.lower() not in ARCHIVE_SUFFIXES:
        return None
    tool = {".zip": "unzip", ".7z": "7z x", ".rar": "unrar x"}.get(path.suffix.lower(), "tar xf")
    command = f"{tool} {printable(path.name)}"
    return f"it is an archive: unpack it into a folder of its own (`{command}`), and give that folder"


class _Search:
    """Lists folders: first those that are no links, then those that links lead to. Takes linked files last."""

    def __init__(self, found: FolderPictures) -> None:
        self._found = found
        self._listed: set[tuple[int, int]] = set()  # device and inode of each folder
        self._folder_links: list[str] = []
        self._file_links: list[str] = []

    def run(self) -> None:
        self._list_all("")
        while self._folder_links:
            links, self._folder_links = sorted(self._folder_links), []
            for link in links:
                if self._is_listed(self._found.folder / link):
                    self._found.repeated.append(link)
                else:
                    self._list_all(link)
        targets: set[Path] = set()
        for link in sorted(self._file_links):
            self._add_link(link, targets)

    def _list_all(self, first: str) -> None:
        """Lists a folder and, without following links, its subfolders."""
        waiting = [first]
        while waiting:
            name = waiting.pop()
            folder = self._found.folder / name
            try:
                self._listed.add(_identity(folder))
                with os.scandir(folder) as entries:
                    waiting += [subfolder for entry in entries for subfolder in self._take(name, entry)]
            except OSError as error:
                self._found.unreadable.append(f"{printable(str(folder))} ({error.strerror})")

    def _take(self, folder: str, entry: os.DirEntry[str]) -> Iterator[str]:
        """Takes note of an entry; yields it if it is a folder to be listed."""
        name = f"{folder}/{entry.name}" if folder else entry.name
        if _is_hidden(entry.name):
            self._found.hidden += 1
        elif entry.is_symlink():
            self._take_link(name)
        elif entry.is_dir(follow_symlinks=False):
            yield name
        elif entry.is_file(follow_symlinks=False):
            self._add(name)
        else:
            self._found.special += 1

    def _take_link(self, name: str) -> None:
        path = self._found.folder / name
        try:
            mode = path.stat().st_mode
        except OSError as error:
            if path.suffix.lower() in FILE_SUFFIXES:
                self._found.names.append(name)  # reading it will fail, and be reported there
            else:
                self._found.unreadable.append(f"{printable(str(path))} (a link: {error.strerror})")
            return
        if stat.S_ISDIR(mode):
            self._folder_links.append(name)
        elif stat.S_ISREG(mode):
            self._file_links.append(name)
        else:
            self._found.special += 1

    def _add_link(self, name: str, targets: set[Path]) -> None:
        target = (self._found.folder / name).resolve()
        is_listed = self._is_listed(target.parent) and not _is_hidden(target.name) and _is_picture(target)
        if is_listed or target in targets:
            self._found.repeated.append(name)
        else:
            targets.add(target)
            self._add(name)

    def _add(self, name: str) -> None:
        path = self._found.folder / name
        if _is_picture(path):
            self._found.names.append(name)
        else:
            self._found.others[path.suffix.lower()] += 1

    def _is_listed(self, folder: Path) -> bool:
        try:
            return _identity(folder) in self._listed
        except OSError:  # it was deleted meanwhile
            return False


def _identity(folder: Path) -> tuple[int, int]:
    state = folder.stat()
    return state.st_dev, state.st_ino


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in _SYSTEM_NAMES


def _is_picture(path: Path) -> bool:
    suffix = path.suffix.lower()
    return suffix in FILE_SUFFIXES or (not suffix and _begins_like_picture(path))


def _begins_like_picture(path: Path) -> bool:
    try:
        with warnings.catch_warnings():  # a large picture is still a picture
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            Image.open(path, formats=FILE_FORMATS).close()
    except Image.DecompressionBombError:
        return True
    except Exception:  # see glowserve.images.open_encoded
        return False
    return True
