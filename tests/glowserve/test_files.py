"""Files and folders that are written completely or not at all."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

import pytest

from glowserve.files import atomic_write, publish_directory, staging_directory


def test_a_file_is_replaced_only_when_its_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with atomic_write(path) as file:
        file.write(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == 0o644


def _interrupted_write(path: Path) -> None:
    with atomic_write(path) as file:
        file.write(b"new")
        raise KeyboardInterrupt


def test_a_file_whose_block_raises_stays_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt):
        _interrupted_write(path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_staging_folder_is_published_with_its_content(tmp_path: Path) -> None:
    with staging_directory(tmp_path) as staged:
        assert staged.parent == tmp_path
        (staged / "folder").mkdir()
        (staged / "folder" / "file").write_bytes(b"content")
        publish_directory(staged, tmp_path / "1")
    assert (tmp_path / "1" / "folder" / "file").read_bytes() == b"content"
    assert (tmp_path / "1").stat().st_mode & 0o777 == 0o755
    assert [path.name for path in tmp_path.iterdir()] == ["1"]


def test_an_occupied_name_is_refused_and_the_staging_folder_can_take_another(tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "other").touch()
    with staging_directory(tmp_path) as staged:
        (staged / "file").touch()
        with pytest.raises(FileExistsError, match="1 exists"):
            publish_directory(staged, tmp_path / "1")
        publish_directory(staged, tmp_path / "2")
    assert [path.name for path in (tmp_path / "1").iterdir()] == ["other"]
    assert [path.name for path in (tmp_path / "2").iterdir()] == ["file"]


def _interrupted_staging(parent: Path) -> None:
    with staging_directory(parent) as staged:
        (staged / "file").touch()
        raise KeyboardInterrupt


def test_a_staging_folder_whose_block_raises_is_deleted(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        _interrupted_staging(tmp_path)
    assert list(tmp_path.iterdir()) == []


def _staging_folder(parent: Path, name: str, age_seconds: float) -> Path:
    path = parent / f".staging-{name}"
    path.mkdir()
    (path / "file").touch()
    os.utime(path, (time.time() - age_seconds,) * 2)
    return path


def test_only_old_unlocked_staging_folders_are_deleted_as_abandoned(tmp_path: Path) -> None:
    abandoned = _staging_folder(tmp_path, "abandoned", age_seconds=3600)
    young = _staging_folder(tmp_path, "young", age_seconds=0)
    locked = _staging_folder(tmp_path, "locked", age_seconds=3600)
    descriptor = os.open(locked, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        with staging_directory(tmp_path):
            pass
    finally:
        os.close(descriptor)
    assert not abandoned.exists()
    assert young.exists()
    assert locked.exists()
