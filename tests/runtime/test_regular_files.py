"""Only regular files are read, and only as much as they may have."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from glowserve.runtime.regular_files import read_regular_file


def fifo(path: Path) -> None:
    os.mkfifo(path)


def listening_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(os.path.relpath(path))  # the name of a socket is short


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def terminal(path: Path) -> None:
    path.symlink_to("/dev/tty")


def folder(path: Path) -> None:
    path.mkdir()


def loop_of_links(path: Path) -> None:
    path.symlink_to(path)


def link_to_nothing(path: Path) -> None:
    path.symlink_to(path.parent / "nothing")


def link_to_a_fifo(path: Path) -> None:
    os.mkfifo(path.parent / "fifo")
    path.symlink_to(path.parent / "fifo")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (fifo, "it is a FIFO and must be a regular file"),
        (link_to_a_fifo, "it is a FIFO and must be a regular file"),
        (listening_socket, "it is a socket and must be a regular file"),
        (device, "it is a device and must be a regular file"),
        (terminal, "it is a device and must be a regular file"),
        (folder, "it is a folder and must be a regular file"),
        (loop_of_links, "Too many levels of symbolic links"),
        (link_to_nothing, "No such file or directory"),
    ],
)
def test_what_is_no_regular_file_is_refused_at_once(
    tmp_path: Path, make: Callable[[Path], None], words: str
) -> None:
    make(tmp_path / "file")
    with pytest.raises(OSError, match=words) as caught:
        read_regular_file(tmp_path / "file", 10)
    assert caught.value.strerror == words


def test_links_as_kubernetes_makes_them_are_followed(tmp_path: Path) -> None:
    (tmp_path / "..2026").mkdir()
    (tmp_path / "..2026" / "file").write_bytes(b"content")
    (tmp_path / "..data").symlink_to("..2026")
    (tmp_path / "file").symlink_to("..data/file")
    assert read_regular_file(tmp_path / "file", 7) == b"content"


def test_a_file_may_have_as_many_bytes_as_allowed_and_no_more(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    assert read_regular_file(tmp_path / "file", 5) == b"12345"
    with pytest.raises(OSError, match="it has 5 bytes and may have 4"):
        read_regular_file(tmp_path / "file", 4)


def test_a_file_that_says_it_is_empty_is_not_read_without_end() -> None:
    """Files of /proc have a size of 0."""
    with pytest.raises(OSError, match="it has 11 bytes and may have 10"):
        read_regular_file(Path("/proc/cpuinfo"), 10)
