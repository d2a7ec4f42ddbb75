"""Images that a model was not trained on: all of them calibrate, are fitted to or are for tests."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from glowserve_training.data import HeldOutImages, load_held_out, load_images, load_unseen, write_held_out
from glowserve_training.errors import DataError, TooFewImagesError

from tests.training.data.conftest import SaveImages
from tests.training.data.loading import config, contents

_PARTS = ("validation", "calibration", "test")


def sizes(images: HeldOutImages) -> tuple[int, ...]:
    return tuple(len(getattr(images, part)) for part in _PARTS)


def save(path: Path, **splits: int) -> Path:
    """An .npz file of noise with so many images of each name."""
    rng = np.random.default_rng(0)
    np.savez(path, **{name: rng.integers(0, 256, (n, 4, 4), dtype=np.uint8) for name, n in splits.items()})
    return path


@pytest.mark.parametrize(
    ("n", "expected"),
    [
        (50, (12, 26, 12)),
        (1000, (250, 500, 250)),
        (4000, (1000, 2000, 1000)),
        (5000, (1000, 3000, 1000)),
        (9000, (1000, 4000, 1000)),
    ],
)
def test_half_or_more_calibrates_up_to_limits(n: int, expected: tuple[int, ...], tmp_path: Path) -> None:
    assert sizes(load_unseen(config(save(tmp_path / "a.npz", images=n), size=4))) == expected


def test_every_image_is_used_once_and_the_seed_says_where(tmp_path: Path) -> None:
    numbered = np.arange(90, dtype=np.uint8)[:, None, None].repeat(4, 1).repeat(4, 2)
    np.savez(tmp_path / "numbered.npz", images=numbered)

    first, again, other = (
        load_unseen(config(tmp_path / "numbered.npz", size=4, split_seed=seed)) for seed in (0, 0, 1)
    )

    parts = [getattr(first, part)[:, 0, 0, 0].tolist() for part in _PARTS]
    assert sorted(itertools.chain(*parts)) == list(range(90))
    assert first.calibration_keys == [f"train/{i}" for i in parts[1]]
    assert first.digest == again.digest != other.digest


@pytest.mark.parametrize(
    ("splits", "used", "expected"),
    [
        ({"train_images": 300, "val_images": 100, "test_images": 60}, "test_images", (15, 30, 15)),
        ({"train_images": 300, "val_images": 100}, "val_images", (25, 50, 25)),
        ({"test_images": 100}, "test_images", (25, 50, 25)),
    ],
)
def test_where_there_are_training_images_others_are_used(
    splits: dict[str, int], used: str, expected: tuple[int, ...], tmp_path: Path
) -> None:
    path = save(tmp_path / "a.npz", **splits)

    images = load_unseen(config(path, size=4))

    assert sizes(images) == expected
    assert set.union(*(contents(getattr(images, part)) for part in _PARTS)) == contents(np.load(path)[used])


def test_the_first_calibration_images_are_training_images_of_the_split_for_training(tmp_path: Path) -> None:
    """A bundle without the order of its calibration images must not be taken for one of the other kind."""
    np.savez(
        tmp_path / "a.npz", images=np.arange(90, dtype=np.uint8)[:, None, None].repeat(4, 1).repeat(4, 2)
    )
    shape = config(tmp_path / "a.npz", size=4)

    assert contents(load_unseen(shape).calibration[:40]) <= contents(load_images(shape).train)


def test_the_first_few_can_be_read_alone(tmp_path: Path, numbered: Path) -> None:
    (numbered / "00.png").write_bytes(b"no picture")
    for load in (load_unseen, load_held_out):
        first, whole = load(config(numbered), 2), load(config(numbered))
        for part in _PARTS:
            np.testing.assert_array_equal(getattr(first, part)[:1], getattr(whole, part)[:1])
            assert len(getattr(first, part)) <= 2


def test_the_parts_of_a_file_that_a_run_kept_stay_what_they_are(tmp_path: Path) -> None:
    kept = load_images(config("digits"))
    write_held_out(kept, tmp_path / "held_out.npz")

    assert load_unseen(config(tmp_path / "held_out.npz")).digest == kept.digest


def test_too_few_images_are_refused_with_what_was_counted(tmp_path: Path) -> None:
    few = config(save(tmp_path / "few.npz", images=1), size=4)
    with pytest.raises(
        TooFewImagesError, match=r"few.npz' has 1 image; .* takes 50 or more: give a folder of more"
    ):
        load_unseen(few)

    own = config(save(tmp_path / "own.npz", train_images=900, test_images=49), size=4)
    with pytest.raises(
        TooFewImagesError, match=r"has 49 test images, and its others are not used; .* 50 or more"
    ):
        load_unseen(own)


def test_images_that_cannot_be_read_are_skipped_or_refused(
    tmp_path: Path, save_images: SaveImages, capfd: pytest.CaptureFixture[str]
) -> None:
    save_images(tmp_path / "photos", 60)
    photos = sorted((tmp_path / "photos").iterdir())
    for path in photos[:6]:
        path.write_bytes(b"no picture")
    assert sum(sizes(load_unseen(config(tmp_path / "photos")))) == 54
    assert "6 of 60 images cannot be read and are skipped" in capfd.readouterr().err

    for path in photos:
        path.write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"leaves no images for validation: none of the 15 can be read"):
        load_unseen(config(tmp_path / "photos"))
