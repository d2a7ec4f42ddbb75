"""Training images that do not fit into memory lie in a file, and are the same."""

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
from glowserve_training.data import (
    DataConfig,
    ImageData,
    StepLoader,
    images,
    load_images,
)
from glowserve_training.data.image_file import ImageFile
from glowserve_training.errors import DataError
from PIL import Image

from glowserve.images import UInt8Array

Decoded = Callable[[], int]


@pytest.fixture
def folder(tmp_path: Path, rng: np.random.Generator) -> Path:
    """60 pictures of noise, 8 x 8 pixels."""
    (tmp_path / "pictures").mkdir()
    for i in range(60):
        pixels = rng.integers(0, 256, (8, 8), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "pictures" / f"{i:02d}.png")
    return tmp_path / "pictures"


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Decoded:
    """How many pictures were prepared since it was last asked."""
    count, prepare, lock = [0], images.prepare, threading.Lock()

    def counting(*args: Any) -> UInt8Array:
        with lock:
            count[0] += 1
        return prepare(*args)

    def since() -> int:
        n, count[0] = count[0], 0
        return n

    monkeypatch.setattr(images, "prepare", counting)
    return since


def config(folder: Path, **changes: Any) -> DataConfig:
    return DataConfig(**({"data": str(folder), "image_size": 8, "channels": 1} | changes))


def spilled(folder: Path, spill: Path | None, **changes: Any) -> ImageData:
    return load_images(config(folder, **changes), cache=spill, memory_limit=0)


def equal(one: ImageData, other: ImageData) -> bool:
    return one.digest == other.digest and np.array_equal(one.train, other.train)


def mapped_file(array: UInt8Array) -> str:
    """The file whose pages an array consists of, by the system's list of what is mapped where."""
    address = array.__array_interface__["data"][0]
    for line in Path("/proc/self/maps").read_text().splitlines():
        first, last = (int(part, 16) for part in line.split()[0].split("-"))
        if first <= address < last:
            return line.split(maxsplit=5)[5] if len(line.split(maxsplit=5)) == 6 else ""
    raise AssertionError("the array is nowhere")


needs_maps = pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux's /proc")


# The same images


def test_images_beyond_the_limit_lie_in_the_file_and_others_in_memory(folder: Path, tmp_path: Path) -> None:
    size = 48 * 8 * 8

    kept = load_images(config(folder), cache=tmp_path / "spill", memory_limit=size)
    assert not isinstance(kept.train, np.memmap)
    assert not (tmp_path / "spill").exists()

    streamed = load_images(config(folder), cache=tmp_path / "spill", memory_limit=size - 1)
    assert isinstance(streamed.train, np.memmap)
    assert Path(str(streamed.train.filename)) == tmp_path / "spill" / "train.npy"
    assert not streamed.train.flags.writeable
    assert not isinstance(streamed.validation, np.memmap)
    assert equal(kept, streamed)
    np.testing.assert_array_equal(np.load(tmp_path / "spill" / "train.npy"), kept.train)
    assert sorted(path.name for path in (tmp_path / "spill").glob("[!.]*")) == ["train.json", "train.npy"]


@needs_maps
def test_the_pages_of_the_images_are_those_of_the_file(folder: Path, tmp_path: Path) -> None:
    assert mapped_file(spilled(folder, tmp_path / "spill").train) == str(tmp_path / "spill" / "train.npy")
    assert mapped_file(load_images(config(folder)).train) in ("", "[heap]")


@pytest.mark.parametrize("world_size", [1, 2])
def test_batches_from_the_file_are_those_from_memory(world_size: int, folder: Path, tmp_path: Path) -> None:
    kept, streamed = load_images(config(folder)).train, spilled(folder, tmp_path / "spill").train

    for rank in range(world_size):
        one, other = (
            StepLoader(train, batch_size=8, steps=12, seed=3, rank=rank, world_size=world_size)
            for train in (kept, streamed)
        )
        for (batch, noise), (same_batch, same_noise) in zip(one, other, strict=True):
            assert torch.equal(batch, same_batch)
            assert torch.equal(noise, same_noise)


def test_a_damaged_picture_leaves_no_gap_in_the_file(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    number = int(np.random.Generator(np.random.Philox(0)).permutation(60)[30])  # a training image
    (folder / f"{number:02d}.png").write_bytes(b"not a picture")

    kept, streamed = load_images(config(folder)), spilled(folder, tmp_path / "spill")

    assert len(streamed.train) == 47
    assert equal(kept, streamed)
    assert (tmp_path / "spill" / "train.npy").stat().st_size == 128 + 47 * 64
    again = spilled(folder, tmp_path / "spill")
    assert equal(kept, again)
    told = capfd.readouterr().err.splitlines()
    assert len(told) == 3  # and the same each time, whether it was decoded or not
    assert set(told) == {told[0]}
    assert f"1 of 60 pictures cannot be read and are left out: image {folder}/{number:02d}.png" in told[0]


def test_too_many_damaged_pictures_leave_no_file(folder: Path, tmp_path: Path, decoded: Decoded) -> None:
    whole = {file: file.read_bytes() for file in sorted(folder.iterdir())[:10]}
    for file in whole:
        file.write_bytes(b"not a picture")

    with pytest.raises(DataError, match="10 of 60 pictures cannot be read"):
        spilled(folder, tmp_path / "spill")

    assert list((tmp_path / "spill").glob("*train*")) == []
    for file, data in whole.items():
        file.write_bytes(data)
    assert len(spilled(folder, tmp_path / "spill").train) == 48


def test_without_a_folder_the_file_goes_with_the_array(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))

    train = spilled(folder, None).train
    gc.collect()

    assert isinstance(train, np.memmap)
    np.testing.assert_array_equal(train, load_images(config(folder)).train)
    if Path("/proc/self/maps").exists():
        assert mapped_file(train).startswith(str(tmp_path / "tmp" / "glowserve-"))
    assert list((tmp_path / "tmp").iterdir()) == []


def test_preparing_does_not_run_ahead_of_writing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decoded: Decoded
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    ahead: list[int] = []

    def watched(_: ImageFile, arrays: Iterator[UInt8Array], *args: Any) -> None:
        prepared = decoded() - 12  # without what is held out
        for written, _array in enumerate(arrays):
            prepared += decoded()
            ahead.append(prepared - written)
        raise DataError("enough")

    monkeypatch.setattr(ImageFile, "write", watched)

    with pytest.raises(DataError, match="enough"):
        spilled(folder, tmp_path / "spill")

    assert len(ahead) == 48
    assert max(ahead) <= 1 + 4 * 2  # the one in hand, and 4 for each of 2 threads


# Again


def test_a_whole_file_is_used_again_without_decoding(folder: Path, tmp_path: Path, decoded: Decoded) -> None:
    first = spilled(folder, tmp_path / "spill")
    written = (tmp_path / "spill" / "train.npy").stat()
    assert decoded() == 60

    again = spilled(folder, tmp_path / "spill")

    assert decoded() == 12  # what is held out
    assert equal(first, again)
    assert (tmp_path / "spill" / "train.npy").stat().st_ino == written.st_ino


@pytest.mark.parametrize(
    "changes", [{"split_seed": 1}, {"image_size": 4}, {"channels": 3}, {"preparation": "nearest"}]
)
def test_a_file_of_other_images_is_made_again(
    changes: dict[str, Any], folder: Path, tmp_path: Path, decoded: Decoded
) -> None:
    if "preparation" in changes:
        changes = {"preparation": images.Preparation(filter=changes["preparation"])}
    spilled(folder, tmp_path / "spill")
    decoded()

    other = spilled(folder, tmp_path / "spill", **changes)

    assert decoded() == 60
    assert equal(other, load_images(config(folder, **changes)))


def test_a_file_is_made_again_when_there_are_more_pictures(folder: Path, tmp_path: Path) -> None:
    spilled(folder, tmp_path / "spill")
    for i in range(5):
        Image.new("L", (8, 8), i).save(folder / f"more{i}.png")

    assert equal(spilled(folder, tmp_path / "spill"), load_images(config(folder)))


def test_a_file_is_made_again_when_as_many_pictures_are_others(folder: Path, tmp_path: Path) -> None:
    spilled(folder, tmp_path / "spill")
    for i in range(60):
        Image.new("L", (8, 8), i).save(folder / f"{i:02d}.png")

    assert equal(spilled(folder, tmp_path / "spill"), load_images(config(folder)))


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
def test_a_damaged_file_is_made_again(
    damage: Callable[[Path], None], name: str, folder: Path, tmp_path: Path, decoded: Decoded
) -> None:
    first = load_images(config(folder))
    spilled(folder, tmp_path / "spill")
    if (name, damage) == ("train.json", cut):  # the last character is a line feed
        cut(tmp_path / "spill" / name)
    damage(tmp_path / "spill" / name)
    decoded()

    assert equal(spilled(folder, tmp_path / "spill"), first)
    assert decoded() == 60
    assert equal(spilled(folder, tmp_path / "spill"), first)
    assert decoded() == 12


# Interrupted


def test_an_interrupted_one_leaves_nothing_that_could_be_taken_for_whole(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare, count = images.prepare, [0]

    def interrupted(*args: Any) -> UInt8Array:
        count[0] += 1
        if count[0] == 40:
            raise KeyboardInterrupt
        return prepare(*args)

    with monkeypatch.context() as patch:
        patch.setattr(images, "prepare", interrupted)
        with pytest.raises(KeyboardInterrupt):
            spilled(folder, tmp_path / "spill")

    assert [path.name for path in (tmp_path / "spill").iterdir() if path.name != ".lock"] == []
    assert equal(spilled(folder, tmp_path / "spill"), load_images(config(folder)))


def test_what_a_killed_one_left_is_cleared_away(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "spill").mkdir()
    (tmp_path / "spill" / ".train.npy.abc.part").write_bytes(b"half")

    spilled(folder, tmp_path / "spill")

    assert list((tmp_path / "spill").glob(".*.part")) == []


def test_of_several_at_once_one_makes_the_file_and_the_others_find_it(
    folder: Path, tmp_path: Path, decoded: Decoded
) -> None:
    found: list[ImageData] = []
    threads = [
        threading.Thread(target=lambda: found.append(spilled(folder, tmp_path / "spill"))) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert decoded() == 48 + 3 * 12
    assert len(found) == 3
    assert all(equal(one, load_images(config(folder))) for one in found)


# No room


def test_a_disk_without_room_is_refused_before_anything_is_decoded(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decoded: Decoded
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=48 * 64 * 64 - 1))

    with pytest.raises(
        DataError,
        match=r"spill/train\.npy cannot be written: No space left on device\. The images do not fit into memory "
        r"and need 0\.2 MiB there; make room, or use a folder on another disk",
    ):
        spilled(folder, tmp_path / "spill", image_size=64)

    assert decoded() == 12
    assert list((tmp_path / "spill").glob("*train*")) == []


@pytest.mark.parametrize("limit", [100, 128 + 20 * 1024])
def test_a_disk_that_is_full_halfway_is_refused(limit: int, folder: Path, tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    spilled(folder, tmp_path / "spill")  # its temporary files are there
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))  # the system then refuses to write more
    try:
        with pytest.raises(DataError, match=rf"train\.npy cannot be written: {os.strerror(errno.EFBIG)}"):
            spilled(folder, tmp_path / "spill", image_size=32)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert [path.name for path in (tmp_path / "spill").iterdir()] == [".lock"]
