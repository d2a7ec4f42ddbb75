"""Training images that are too large for memory are memory-mapped from a file, with the same content."""

from __future__ import annotations

import errno
import gc
import json
import os
import resource
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from glowserve_training.data import DataConfig, ImageData, StepLoader, images, load_images, parallel
from glowserve_training.data.image_file import ImageFile
from glowserve_training.errors import DataError
from PIL import Image

from glowserve.images import Preparation, UInt8Array

PreparedSince = Callable[[], int]


@pytest.fixture
def folder(tmp_path: Path, rng: np.random.Generator) -> Path:
    """60 images of noise, 8x8 pixels."""
    (tmp_path / "images").mkdir()
    for i in range(60):
        pixels = rng.integers(0, 256, (8, 8), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{i:02d}.png")
    return tmp_path / "images"


@pytest.fixture
def prepared_since(monkeypatch: pytest.MonkeyPatch) -> PreparedSince:
    """Counts the images that were prepared since its last call."""
    count, prepare, lock = [0], parallel.prepare, threading.Lock()

    def counting(*args: Any) -> UInt8Array:
        with lock:
            count[0] += 1
        return prepare(*args)

    def since() -> int:
        n, count[0] = count[0], 0
        return n

    monkeypatch.setattr(parallel, "prepare", counting)
    return since


def config(folder: Path, **changes: Any) -> DataConfig:
    return DataConfig(**({"data": str(folder), "image_size": 8, "channels": 1} | changes))


def load_mapped(folder: Path, cache: Path | None, **changes: Any) -> ImageData:
    return load_images(config(folder, **changes), cache=cache, memory_limit=0)


def equal(one: ImageData, other: ImageData) -> bool:
    return one.digest == other.digest and np.array_equal(one.train, other.train)


def mapped_file(array: UInt8Array) -> str:
    """The file that an array is mapped from, from the kernel's list of mappings."""
    address = array.__array_interface__["data"][0]
    for line in Path("/proc/self/maps").read_text().splitlines():
        first, last = (int(part, 16) for part in line.split()[0].split("-"))
        if first <= address < last:
            return line.split(maxsplit=5)[5] if len(line.split(maxsplit=5)) == 6 else ""
    raise AssertionError("the array is in no mapping")


needs_maps = pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux's /proc")


# The same images


def test_images_beyond_the_limit_are_in_the_file_and_others_in_memory(folder: Path, tmp_path: Path) -> None:
    size = 48 * 8 * 8

    in_memory = load_images(config(folder), cache=tmp_path / "cache", memory_limit=size)
    assert not isinstance(in_memory.train, np.memmap)
    assert not (tmp_path / "cache").exists()

    mapped = load_images(config(folder), cache=tmp_path / "cache", memory_limit=size - 1)
    assert isinstance(mapped.train, np.memmap)
    assert Path(str(mapped.train.filename)) == tmp_path / "cache" / "train.npy"
    assert not mapped.train.flags.writeable
    assert not isinstance(mapped.validation, np.memmap)
    assert equal(in_memory, mapped)
    np.testing.assert_array_equal(np.load(tmp_path / "cache" / "train.npy"), in_memory.train)
    assert sorted(path.name for path in (tmp_path / "cache").glob("[!.]*")) == ["train.json", "train.npy"]


@needs_maps
def test_the_images_are_mapped_from_the_file(folder: Path, tmp_path: Path) -> None:
    assert mapped_file(load_mapped(folder, tmp_path / "cache").train) == str(tmp_path / "cache" / "train.npy")
    assert mapped_file(load_images(config(folder)).train) in ("", "[heap]")


@pytest.mark.parametrize("world_size", [1, 2])
def test_batches_from_the_file_are_those_from_memory(world_size: int, folder: Path, tmp_path: Path) -> None:
    in_memory, mapped = load_images(config(folder)).train, load_mapped(folder, tmp_path / "cache").train

    for rank in range(world_size):
        one, other = (
            StepLoader(train, batch_size=8, steps=12, seed=3, rank=rank, world_size=world_size)
            for train in (in_memory, mapped)
        )
        for (batch, noise), (same_batch, same_noise) in zip(one, other, strict=True):
            assert torch.equal(batch, same_batch)
            assert torch.equal(noise, same_noise)


def test_an_unreadable_image_leaves_no_gap_in_the_file(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    number = int(np.random.Generator(np.random.Philox(0)).permutation(60)[30])  # a training image
    (folder / f"{number:02d}.png").write_bytes(b"not an image")

    in_memory, mapped = load_images(config(folder)), load_mapped(folder, tmp_path / "cache")

    assert len(mapped.train) == 47
    assert equal(in_memory, mapped)
    assert (tmp_path / "cache" / "train.npy").stat().st_size == 128 + 47 * 64
    again = load_mapped(folder, tmp_path / "cache")
    assert equal(in_memory, again)
    reported = capfd.readouterr().err.splitlines()
    assert len(reported) == 3  # also when the file was reused and nothing was decoded
    assert set(reported) == {reported[0]}
    assert f"1 of 60 images cannot be read and are skipped: image {folder}/{number:02d}.png" in reported[0]


def test_too_many_unreadable_images_leave_no_file(
    folder: Path, tmp_path: Path, prepared_since: PreparedSince
) -> None:
    originals = {file: file.read_bytes() for file in sorted(folder.iterdir())[:10]}
    for file in originals:
        file.write_bytes(b"not an image")

    with pytest.raises(DataError, match="10 of 60 images cannot be read"):
        load_mapped(folder, tmp_path / "cache")

    assert list((tmp_path / "cache").glob("*train*")) == []
    for file, data in originals.items():
        file.write_bytes(data)
    assert len(load_mapped(folder, tmp_path / "cache").train) == 48


def test_without_a_folder_the_file_is_deleted_with_the_array(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))

    train = load_mapped(folder, None).train
    gc.collect()

    assert isinstance(train, np.memmap)
    np.testing.assert_array_equal(train, load_images(config(folder)).train)
    if Path("/proc/self/maps").exists():
        assert mapped_file(train).startswith(str(tmp_path / "tmp" / "glowserve-"))
    assert list((tmp_path / "tmp").iterdir()) == []


def test_images_are_not_prepared_far_ahead_of_writing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prepared_since: PreparedSince
) -> None:
    for module in (images, parallel):
        monkeypatch.setattr(module, "cores", lambda: 2)
    waiting: list[int] = []

    def watched(_: ImageFile, arrays: Iterator[UInt8Array], *args: Any) -> None:
        prepared = prepared_since() - 12  # without the held-out images
        for written, _array in enumerate(arrays):
            prepared += prepared_since()
            waiting.append(prepared - written)
        raise DataError("enough")

    monkeypatch.setattr(ImageFile, "write", watched)

    with pytest.raises(DataError, match="enough"):
        load_mapped(folder, tmp_path / "cache")

    assert len(waiting) == 48
    assert max(waiting) <= 1 + 4 * 2  # the current one, and 4 for each of 2 threads


# Reuse


def test_a_complete_file_is_reused_without_decoding(
    folder: Path, tmp_path: Path, prepared_since: PreparedSince
) -> None:
    first = load_mapped(folder, tmp_path / "cache")
    written = (tmp_path / "cache" / "train.npy").stat()
    assert prepared_since() == 60

    again = load_mapped(folder, tmp_path / "cache")

    assert prepared_since() == 12  # the held-out images
    assert equal(first, again)
    assert (tmp_path / "cache" / "train.npy").stat().st_ino == written.st_ino


@pytest.mark.parametrize(
    "changes", [{"split_seed": 1}, {"image_size": 4}, {"channels": 3}, {"preparation": "nearest"}]
)
def test_a_file_of_other_images_is_written_anew(
    changes: dict[str, Any], folder: Path, tmp_path: Path, prepared_since: PreparedSince
) -> None:
    if "preparation" in changes:
        changes = {"preparation": Preparation(filter=changes["preparation"])}
    load_mapped(folder, tmp_path / "cache")
    prepared_since()

    other = load_mapped(folder, tmp_path / "cache", **changes)

    assert prepared_since() == 60
    assert equal(other, load_images(config(folder, **changes)))


def test_a_file_is_written_anew_when_images_were_added(folder: Path, tmp_path: Path) -> None:
    load_mapped(folder, tmp_path / "cache")
    for i in range(5):
        Image.new("L", (8, 8), i).save(folder / f"more{i}.png")

    assert equal(load_mapped(folder, tmp_path / "cache"), load_images(config(folder)))


def test_a_file_is_written_anew_when_images_were_replaced(folder: Path, tmp_path: Path) -> None:
    load_mapped(folder, tmp_path / "cache")
    for i in range(60):
        Image.new("L", (8, 8), i).save(folder / f"{i:02d}.png")

    assert equal(load_mapped(folder, tmp_path / "cache"), load_images(config(folder)))


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def foreign(path: Path) -> None:
    path.write_bytes(b"something else")


def reshaped(path: Path) -> None:
    if path.suffix == ".npy":
        np.save(path, np.zeros((47, 8, 8, 1), np.uint8))
    else:
        path.write_text(json.dumps(json.loads(path.read_text()) | {"shape": [47, 8, 8, 1]}))


@pytest.mark.parametrize("name", ["train.npy", "train.json"])
@pytest.mark.parametrize("damage", [Path.unlink, cut, empty, foreign, reshaped])
def test_a_damaged_file_is_written_anew(
    damage: Callable[[Path], None], name: str, folder: Path, tmp_path: Path, prepared_since: PreparedSince
) -> None:
    first = load_images(config(folder))
    load_mapped(folder, tmp_path / "cache")
    if (name, damage) == (
        "train.json",
        cut,
    ):  # the last character is a newline, without which JSON is still valid
        cut(tmp_path / "cache" / name)
    damage(tmp_path / "cache" / name)
    prepared_since()

    assert equal(load_mapped(folder, tmp_path / "cache"), first)
    assert prepared_since() == 60
    assert equal(load_mapped(folder, tmp_path / "cache"), first)
    assert prepared_since() == 12


# Interrupted


def test_an_interruption_leaves_no_file(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare, count = parallel.prepare, [0]

    def interrupted(*args: Any) -> UInt8Array:
        count[0] += 1
        if count[0] == 40:
            raise KeyboardInterrupt
        return prepare(*args)

    with monkeypatch.context() as patch:
        patch.setattr(parallel, "prepare", interrupted)
        with pytest.raises(KeyboardInterrupt):
            load_mapped(folder, tmp_path / "cache")

    assert [path.name for path in (tmp_path / "cache").iterdir() if path.name != ".lock"] == []
    assert equal(load_mapped(folder, tmp_path / "cache"), load_images(config(folder)))


def test_an_unfinished_file_of_a_killed_process_is_deleted(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / ".train.npy.abc.part").write_bytes(b"half")

    load_mapped(folder, tmp_path / "cache")

    assert list((tmp_path / "cache").glob(".*.part")) == []


def test_of_several_at_once_one_writes_the_file_and_the_others_use_it(
    folder: Path, tmp_path: Path, prepared_since: PreparedSince
) -> None:
    found: list[ImageData] = []
    threads = [
        threading.Thread(target=lambda: found.append(load_mapped(folder, tmp_path / "cache")))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert prepared_since() == 48 + 3 * 12
    assert len(found) == 3
    assert all(equal(one, load_images(config(folder))) for one in found)


# No room


def test_a_disk_without_room_is_refused_before_training_images_are_decoded(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prepared_since: PreparedSince
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=48 * 64 * 64 - 1))

    with pytest.raises(
        DataError,
        match=r"cache/train\.npy cannot be written: No space left on device\. The images do not fit into memory "
        r"and need 0\.2 MiB there; make room, or use a folder on another disk",
    ):
        load_mapped(folder, tmp_path / "cache", image_size=64)

    assert prepared_since() == 12
    assert list((tmp_path / "cache").glob("*train*")) == []


@pytest.mark.parametrize("limit", [100, 128 + 20 * 1024])
def test_a_disk_that_fills_up_while_writing_is_refused(limit: int, folder: Path, tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    load_mapped(folder, tmp_path / "cache")  # Python and Pillow have written their own files by now
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))  # larger files cannot be written
    try:
        with pytest.raises(DataError, match=rf"train\.npy cannot be written: {os.strerror(errno.EFBIG)}"):
            load_mapped(folder, tmp_path / "cache", image_size=32)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert [path.name for path in (tmp_path / "cache").iterdir()] == [".lock"]
