"""Held-out images are found again in a source that has grown, moved or lost some."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from glowserve_training.data import HeldOutImages, HeldOutRecord, find_held_out, load_images
from PIL import Image

from tests.training.data.loading import config


@pytest.fixture
def held_out(numbered: Path) -> HeldOutImages:
    """Those of `numbered`, three for validation, three for calibration and six for test."""
    return load_images(config(numbered))


def grow(folder: Path) -> None:
    """Adds images before, between and after the others."""
    for i, name in enumerate(("-1.png", "30a.png", "99.png", "sub/17.png")):
        (folder / name).parent.mkdir(exist_ok=True)
        Image.new("L", (8, 8), 100 + i).save(folder / name)


def values(images: HeldOutImages) -> list[int]:
    return np.concatenate((images.validation, images.test, images.calibration))[:, 0, 0, 0].tolist()


def keys(images: HeldOutImages) -> list[str]:
    return [*images.validation_keys, *images.test_keys, *images.calibration_keys]


def test_images_are_known_by_their_paths_or_by_split_and_index(held_out: HeldOutImages) -> None:
    assert keys(held_out) == [f"{value:02d}.png" for value in values(held_out)]
    digits = load_images(config("digits"))
    assert digits.test_keys[0] == f"train/{np.random.Generator(np.random.Philox(0)).permutation(1797)[0]}"


def test_they_are_found_in_a_folder_that_grew(held_out: HeldOutImages, numbered: Path) -> None:
    grow(numbered)
    assert load_images(config(numbered)).digest != held_out.digest

    found, missing = find_held_out(HeldOutRecord.of(held_out), config(numbered))

    assert found.digest == held_out.digest
    assert missing == []


def test_they_are_found_in_a_folder_that_moved_into_another(
    held_out: HeldOutImages, numbered: Path, tmp_path: Path
) -> None:
    grow(numbered)
    (tmp_path / "elsewhere").mkdir()
    shutil.move(numbered, tmp_path / "elsewhere" / "deeper")

    found, missing = find_held_out(HeldOutRecord.of(held_out), config(tmp_path / "elsewhere"))

    assert found.digest == held_out.digest
    assert missing == []


def test_they_are_found_in_an_array_that_grew(tmp_path: Path, rng: np.random.Generator) -> None:
    images = rng.integers(0, 256, (80, 8, 8, 1), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", images=images[:60])
    held_out = load_images(config(tmp_path / "a.npz"))
    np.savez(tmp_path / "a.npz", images=images)

    found, missing = find_held_out(HeldOutRecord.of(held_out), config(tmp_path / "a.npz"))

    assert (found.digest, missing) == (held_out.digest, [])


def test_those_that_were_removed_changed_or_damaged_are_missing(
    held_out: HeldOutImages, numbered: Path
) -> None:
    removed, changed, damaged = held_out.validation_keys[0], held_out.test_keys[1], held_out.test_keys[2]
    unread = held_out.calibration_keys[2]
    (numbered / removed).unlink()
    (numbered / unread).unlink()
    Image.new("L", (8, 8), 200).save(numbered / changed)
    (numbered / damaged).write_bytes(b"damaged")

    found, missing = find_held_out(HeldOutRecord.of(held_out), config(numbered))

    assert [image.key for image in missing] == [removed, changed, damaged, unread]
    np.testing.assert_array_equal(found.validation, held_out.validation[1:])
    np.testing.assert_array_equal(found.test, held_out.test[[0, 3, 4, 5]])
    np.testing.assert_array_equal(found.calibration, held_out.calibration[:2])


def test_an_image_that_is_held_out_twice_is_found_twice(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=np.zeros((60, 8, 8), np.uint8))
    held_out = load_images(config(tmp_path / "a.npz"))

    found, missing = find_held_out(HeldOutRecord.of(held_out), config(tmp_path / "a.npz"))

    assert (found.digest, missing) == (held_out.digest, [])


def test_in_other_data_all_are_missing(held_out: HeldOutImages, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=np.full((60, 8, 8), 255, np.uint8))

    found, missing = find_held_out(HeldOutRecord.of(held_out), config(tmp_path / "a.npz"))

    assert len(missing) == 12
    assert found.validation.shape == found.test.shape == found.calibration.shape == (0, 8, 8, 1)
