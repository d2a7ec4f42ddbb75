"""Train, validation, calibration and test images: two tenths are held out, as a function of the seed."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from glowserve_training.data import load_images
from glowserve_training.errors import DataError

from tests.training.data.conftest import SaveImages
from tests.training.data.loading import config, contents, numbers, sizes


def test_a_tenth_of_the_digits_is_held_out_for_validation_and_calibration_and_another_for_test() -> None:
    images = load_images(config("digits"))

    assert sizes(images) == (1797 - 2 * 179, 89, 90, 179)
    assert images.train.dtype == np.uint8
    assert images.train.shape[1:] == (8, 8, 1)


def test_every_image_is_in_exactly_one_split(tmp_path: Path) -> None:
    numbered = np.arange(90, dtype=np.uint8)[:, None, None].repeat(4, 1).repeat(4, 2)
    np.savez(tmp_path / "numbered.npz", images=numbered)

    images = load_images(config(tmp_path / "numbered.npz", size=4))

    parts = list(numbers(images).values())
    assert sizes(images) == (72, 4, 5, 9)
    assert sorted(itertools.chain(*parts)) == list(range(90))
    assert parts[0] != sorted(parts[0])


def test_the_splits_are_a_function_of_the_seed() -> None:
    first, again, other = (load_images(config("digits", split_seed=seed)) for seed in (0, 0, 1))

    for name in ("train", "validation", "calibration", "test"):
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name))
    assert first.digest == again.digest
    assert contents(first.test) != contents(other.test)
    assert first.digest != other.digest


def test_the_digest_depends_on_the_held_out_images_alone() -> None:
    images = load_images(config("digits"))

    assert replace(images, train=images.train[:7]).digest == images.digest
    for part in ("validation", "calibration", "test"):
        changed = getattr(images, part).copy()
        changed[0, 0, 0, 0] ^= 1
        assert replace(images, **{part: changed}).digest != images.digest


def test_a_sources_own_splits_are_used(tmp_path: Path, rng: np.random.Generator) -> None:
    arrays = {
        f"{name}_images": rng.integers(0, 256, (n, 6, 6), dtype=np.uint8)
        for name, n in (("train", 60), ("val", 20), ("test", 30))
    }
    np.savez(tmp_path / "a.npz", **arrays, train_labels=np.zeros(60))

    images = load_images(config(tmp_path / "a.npz", size=6))

    assert sizes(images) == (60, 10, 10, 30)
    assert contents(images.train) == contents(arrays["train_images"])
    assert contents(images.validation) | contents(images.calibration) == contents(arrays["val_images"])
    assert contents(images.test) == contents(arrays["test_images"])


def test_only_a_missing_split_is_taken_from_the_training_images(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    train, test = (rng.integers(0, 256, (n, 6, 6), dtype=np.uint8) for n in (60, 20))
    np.savez(tmp_path / "a.npz", train_images=train, test_images=test)

    images = load_images(config(tmp_path / "a.npz", size=6))

    assert sizes(images) == (54, 3, 3, 20)
    assert contents(images.test) == contents(test)
    assert contents(images.train) | contents(images.validation) | contents(images.calibration) == contents(
        train
    )


@pytest.mark.parametrize(
    ("n", "expected"),
    [
        (50, (40, 2, 3, 5)),
        (120, (96, 6, 6, 12)),
        (300, (240, 15, 15, 30)),
        (10_000, (8000, 500, 500, 1000)),  # as many to train on as before calibration images were held out
        (25_000, (21_500, 1000, 1500, 1000)),
        (60_000, (54_000, 1000, 4000, 1000)),
    ],
)
def test_no_more_is_held_out_than_pays(n: int, expected: tuple[int, ...], tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=np.zeros((n, 2, 2), np.uint8))

    assert sizes(load_images(config(tmp_path / "a.npz", size=2))) == expected


def test_of_own_splits_no_more_is_used_than_pays(tmp_path: Path, rng: np.random.Generator) -> None:
    arrays = {
        f"{name}_images": rng.integers(0, 256, (n, 2, 2), dtype=np.uint8)
        for name, n in (("train", 60), ("validation", 7000), ("test", 1200))
    }
    np.savez(tmp_path / "a.npz", **arrays)

    images = load_images(config(tmp_path / "a.npz", size=2))

    assert sizes(images) == (60, 1000, 4000, 1000)
    assert contents(images.test) <= contents(arrays["test_images"])


@pytest.mark.parametrize(("n", "expected"), [(90, (72, 9, 0, 9)), (10_400, (8400, 1000, 0, 1000))])
def test_version_1_splits_as_it_did(n: int, expected: tuple[int, ...], tmp_path: Path) -> None:
    np.savez(
        tmp_path / "a.npz", images=np.arange(n).astype(np.uint8)[:, None, None].repeat(4, 1).repeat(4, 2)
    )

    old, new = (load_images(config(tmp_path / "a.npz", size=4, split_version=v)) for v in (1, 2))

    order = np.random.Generator(np.random.Philox(0)).permutation(n)
    test, validation = order[: expected[3]], order[expected[3] : 2 * expected[3]]
    assert sizes(old) == expected
    assert numbers(old)["test"] == numbers(new)["test"] == (test % 256).tolist()
    assert numbers(old)["validation"] == (validation % 256).tolist()
    both = numbers(new)["validation"] + numbers(new)["calibration"]
    assert both[: len(validation)] == numbers(old)["validation"]
    np.testing.assert_array_equal(old.for_percentiles, old.validation)


def test_an_unknown_version_is_refused() -> None:
    with pytest.raises(ValueError, match="split_version is 3; it must be 1 or 2"):
        config("digits", split_version=3)


def test_too_few_images_are_refused(tmp_path: Path, save_images: SaveImages) -> None:
    save_images(tmp_path / "few", 49)
    with pytest.raises(DataError, match=r"few' has 49 images; training and held-out images need 50 or more"):
        load_images(config(tmp_path / "few"))

    save_images(tmp_path / "few", 50)
    assert sizes(load_images(config(tmp_path / "few"))) == (40, 2, 3, 5)


def test_a_source_that_leaves_no_images_for_validation_is_refused(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    train, test = (rng.integers(0, 256, (n, 6, 6), dtype=np.uint8) for n in (9, 60))
    np.savez(tmp_path / "a.npz", train_images=train, test_images=test)

    with pytest.raises(DataError, match="no images for validation: it has 9 for train, 60 for test"):
        load_images(config(tmp_path / "a.npz", size=6))
