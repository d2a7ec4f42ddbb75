"""What a run held out is found after the run: beside the checkpoint, or in data that has changed since."""

from __future__ import annotations

import shutil
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from glowserve_training import held_out as module
from glowserve_training.checkpoint import load_checkpoint
from glowserve_training.data import HeldOutImages, load_held_out, read_held_out, write_held_out
from glowserve_training.errors import DataError, HeldOutError, RunError
from glowserve_training.held_out import HELD_OUT, HeldOut, held_out_of, keep_held_out
from glowserve_training.presets import run_config
from PIL import Image

from tests.training.runs import run

OLD = Path(__file__).parents[1] / "data" / "0.1.0" / "model.ckpt"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run, `run`, on the images in `photos`."""
    path = tmp_path_factory.mktemp("finished")
    (path / "photos").mkdir()
    for i in range(60):
        Image.new("L", (8, 8), i).save(path / "photos" / f"{i:02d}.png")
    run(run_config(str(path / "photos"), levels=1, steps_per_level=1, width=4, steps=1), path / "run")
    return path


@pytest.fixture
def photos(finished: Path, tmp_path: Path) -> Path:
    """A copy of the images."""
    return Path(shutil.copytree(finished / "photos", tmp_path / "photos"))


@pytest.fixture
def alone(finished: Path, photos: Path, tmp_path: Path) -> HeldOut:
    """The checkpoint in a folder of its own, trained on `photos`."""
    path = Path(shutil.copy(finished / "run" / "model.ckpt", tmp_path / "moved.ckpt"))
    checkpoint = held_out_of(load_checkpoint(path), path)
    return replace(checkpoint, data=replace(checkpoint.data, data=str(photos)))


def loaded(held_out: HeldOut, data: Path | str | None = None) -> tuple[HeldOutImages, list[str]]:
    warnings: list[str] = []
    return held_out.load(None if data is None else str(data), warnings.append), warnings


def test_they_are_kept_with_the_run_and_need_no_data(finished: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(finished / "run", tmp_path / "run")) / "model.ckpt"
    held_out = held_out_of(load_checkpoint(path), path)
    gone = replace(held_out, data=replace(held_out.data, data=str(tmp_path / "gone")))

    images, warnings = loaded(gone)

    assert images.digest == held_out.digest
    assert (len(images.validation), len(images.calibration), len(images.test), warnings) == (3, 3, 6, [])


@pytest.mark.parametrize(
    "spoil", [Path.unlink, lambda path: path.write_bytes(b"x"), lambda path: np.savez(path, a=1)]
)
def test_without_the_kept_file_they_are_found_in_the_data(
    spoil: Callable[[Path], None], finished: Path, tmp_path: Path
) -> None:
    path = Path(shutil.copytree(finished / "run", tmp_path / "run")) / "model.ckpt"
    spoil(path.parent / HELD_OUT)
    held_out = held_out_of(load_checkpoint(path), path)

    images, warnings = loaded(held_out)

    assert (images.digest, warnings) == (held_out.digest, [])


def test_a_checkpoint_that_was_moved_alone_finds_them_in_data_that_grew(alone: HeldOut, photos: Path) -> None:
    for i in range(40):
        Image.new("L", (8, 8), 100 + i).save(photos / f"{i}-new.png")

    images, warnings = loaded(alone)

    assert (images.digest, warnings) == (alone.digest, [])


def test_those_that_are_missing_are_told(alone: HeldOut, photos: Path) -> None:
    assert alone.record is not None
    key = alone.record.test[0].key
    (photos / key).unlink()

    images, warnings = loaded(alone)

    assert (len(images.validation), len(images.calibration), len(images.test)) == (3, 3, 5)
    (warning,) = warnings
    assert warning.startswith("warning: 1 of the 12 images that were held out in training are not in ")
    assert warning.endswith(f"such as {key}; the others are used")


def test_where_most_are_missing_the_error_says_what_was_looked_for_and_names_data(
    alone: HeldOut, photos: Path
) -> None:
    for path in photos.iterdir():
        Image.new("L", (8, 8), 200).save(path)

    with pytest.raises(
        HeldOutError,
        match=r"no longer yields the images .* Looked there for the 12 images .* and for .*/held_out\.npz\. "
        r"If the data has moved, give its new path with --data",
    ):
        loaded(alone)


def test_where_the_data_is_gone_the_error_says_what_was_looked_for_and_names_data(
    alone: HeldOut, photos: Path, tmp_path: Path
) -> None:
    photos.rename(tmp_path / "moved")

    with pytest.raises(
        DataError,
        match=r"there is no such file or folder\. Looked there for the 12 images .* path with --data",
    ):
        loaded(alone)

    images, warnings = loaded(alone, tmp_path / "moved")
    assert (images.digest, warnings) == (alone.digest, [])


def test_the_kept_file_can_be_given_as_data(alone: HeldOut, finished: Path, photos: Path) -> None:
    shutil.rmtree(photos)

    images, warnings = loaded(alone, finished / "run" / HELD_OUT)

    assert (images.digest, warnings) == (alone.digest, [])


def test_the_kept_file_of_another_run_is_used_with_a_warning(
    alone: HeldOut, finished: Path, tmp_path: Path
) -> None:
    kept = read_held_out(finished / "run" / HELD_OUT)
    assert kept is not None
    other = tmp_path / "other.npz"
    write_held_out(replace(kept, test=255 - kept.test), other)

    images, (warning,) = loaded(alone, other)

    np.testing.assert_array_equal(images.test, 255 - kept.test)
    assert "does not yield the images that were held out in training" in warning


def test_of_other_data_all_is_used_with_a_warning(alone: HeldOut, tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", images=np.full((60, 8, 8), 250, np.uint8))

    images, (warning,) = loaded(alone, tmp_path / "other.npz")

    assert (len(images.validation), len(images.calibration), len(images.test)) == (15, 30, 15)
    assert "does not yield the images that were held out in training" in warning


def test_a_small_file_of_large_arrays_is_not_read(alone: HeldOut, photos: Path) -> None:
    large = np.zeros((200_000, 32, 32, 1), np.uint8)
    np.savez_compressed(alone.checkpoint.parent / HELD_OUT, validation=large, test=large[:6])
    assert (alone.checkpoint.parent / HELD_OUT).stat().st_size < 2**20
    del large
    tracemalloc.start()

    images, _ = loaded(alone)

    assert images.digest == alone.digest
    assert tracemalloc.get_traced_memory()[1] < 50 * 2**20
    tracemalloc.stop()


# Old checkpoints


def test_an_old_checkpoint_finds_them_where_the_data_is_as_it_was() -> None:
    held_out = held_out_of(load_checkpoint(OLD), OLD)
    assert held_out.record is None

    images, warnings = loaded(held_out)

    assert (images.digest, warnings) == (held_out.digest, [])


def test_an_old_checkpoint_of_other_data_names_data() -> None:
    held_out = replace(held_out_of(load_checkpoint(OLD), OLD), digest="0" * 64)

    with pytest.raises(HeldOutError, match=r"Looked there for the images that were held out .* with --data"):
        loaded(held_out)


# Keeping them


def test_images_that_are_too_large_are_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = load_held_out(run_config("digits").data)
    monkeypatch.setattr(module, "MOST_BYTES", 2 * 179 * 64 - 1)
    keep_held_out(images, tmp_path)
    assert list(tmp_path.iterdir()) == []

    monkeypatch.setattr(module, "MOST_BYTES", 2 * 179 * 64)
    keep_held_out(images, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [HELD_OUT]


def test_a_file_that_cannot_be_written_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    images = load_held_out(run_config("digits").data)

    with pytest.raises(RunError, match=r"held-out images could not be written to .*: No such file"):
        keep_held_out(images, tmp_path / "nowhere")
