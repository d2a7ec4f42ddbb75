"""Files that are read again when they change."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from glowserve_service.security.reloaded_files import ReloadedFiles

from tests.service.log_records import records_of


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    """Two files with a number each."""
    paths = [tmp_path / "one", tmp_path / "two"]
    for path in paths:
        path.write_text("1")
    return paths


def total(paths: list[Path]) -> Callable[[], int]:
    """Reads the sum of the numbers."""

    def read() -> int:
        try:
            return sum(int(path.read_text()) for path in paths)
        except OSError as error:
            raise ValueError(str(error)) from None

    return read


def test_files_that_cannot_be_read_at_the_start_are_an_error(paths: list[Path]) -> None:
    paths[1].write_text("no number")
    with pytest.raises(ValueError, match="no number"):
        ReloadedFiles(paths, total(paths))


def test_the_content_is_the_same_object_until_a_file_changes(paths: list[Path]) -> None:
    files = ReloadedFiles(paths, lambda: [path.read_text() for path in paths])
    first = files.current()
    assert files.current() is first
    paths[0].write_text("20")
    assert files.current() == ["20", "1"]


def test_a_file_that_was_replaced_is_read_again_even_with_the_same_size_and_time(paths: list[Path]) -> None:
    files = ReloadedFiles(paths, total(paths))
    state = paths[0].stat()
    replacement = paths[0].with_name("replacement")
    replacement.write_text("7")
    os.utime(replacement, ns=(state.st_atime_ns, state.st_mtime_ns))
    replacement.rename(paths[0])
    assert files.current() == 8


@pytest.mark.parametrize("damage", ["no number", None])
def test_a_damaged_or_deleted_file_is_logged_once_and_the_old_content_stays(
    paths: list[Path], damage: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    files = ReloadedFiles(paths, total(paths))
    if damage is None:
        paths[0].unlink()
    else:
        paths[0].write_text(damage)
    assert [files.current() for _ in range(3)] == [2, 2, 2]
    assert [record.levelname for record in records_of(caplog)] == ["ERROR"]
    paths[0].write_text("30")
    assert files.current() == 31
    assert records_of(caplog)[-1].message == f"read again: {paths[0]}, {paths[1]}"


def test_files_that_change_while_they_are_read_are_not_used_before_they_are_read_again(
    paths: list[Path],
) -> None:
    """Some may be old ones and some new ones."""
    read = total(paths)

    def read_while_somebody_writes() -> int:
        value = read()
        if paths[0].read_text() == "20":
            paths[1].write_text("20")
            paths[0].write_text("21")
        return value

    files = ReloadedFiles(paths, read_while_somebody_writes)
    paths[0].write_text("20")
    assert files.current() == 2
    assert files.current() == 41
