"""Unreadable images: a few are skipped and reported, more are refused."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from glowserve_training.data import load_held_out, load_images
from glowserve_training.data.hugging_face import datasets
from glowserve_training.errors import DataError
from PIL import Image

from tests.training.data.loading import config, numbers, rows, sizes


def damage(image: Path, how: str) -> None:
    data = image.read_bytes()
    if how == "header":
        image.write_bytes(b"not an image")
    elif how == "pixels":
        image.write_bytes(data[: data.index(b"IDAT") + 8])
    else:
        image.write_bytes(b"")


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("header", "12 bytes are not an? "),
        ("pixels", r"the \w+ is damaged"),
        ("empty", "0 bytes are not an? "),
        ("missing", "No such file or directory"),
    ],
)
@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_an_unreadable_image_is_skipped_in_its_split_and_named(
    split: str, how: str, reason: str, numbered: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    all_numbers = numbers(load_images(config(numbered)))
    assert capfd.readouterr().err == ""
    victim = all_numbers[split][2]
    image = numbered / f"{victim:02d}.png"
    if how == "missing":
        numbered = of_paths(numbered, missing=victim)
        name = "nowhere.png"
    else:
        damage(image, how)
        name = str(image)
    capfd.readouterr()  # the progress of writing a parquet file

    images = load_images(config(numbered))

    assert numbers(images) == all_numbers | {
        split: [number for number in all_numbers[split] if number != victim]
    }
    line = capfd.readouterr().err
    expected = f"glowserve: 1 of 60 images cannot be read and are skipped: image {name} ("
    assert re.match(re.escape(expected) + reason, line)
    assert line.count("\n") == 1


def of_paths(folder: Path, *, missing: int) -> Path:
    """A parquet file with the paths of a folder's images, one of which does not exist."""
    files: list[str] = [str(file) for file in sorted(folder.iterdir())]
    files[missing] = "nowhere.png"
    datasets.Dataset.from_dict({"image": files}).to_parquet(folder.parent / "paths.parquet")
    return folder.parent / "paths.parquet"


def test_a_row_without_an_image_is_skipped(
    tmp_path: Path, rng: np.random.Generator, capfd: pytest.CaptureFixture[str]
) -> None:
    images = [*rows(59, rng)["image"], None]
    features = datasets.Features({"image": datasets.Image()})
    datasets.Dataset.from_dict({"image": images}, features=features).to_parquet(tmp_path / "a.parquet")

    assert sum(sizes(load_images(config(tmp_path / "a.parquet")))) == 59
    assert "skipped: image 59 (the row has no image)\n" in capfd.readouterr().err


def test_the_remaining_images_are_a_function_of_the_data(numbered: Path) -> None:
    damage(numbered / "17.png", "pixels")

    first, again = load_images(config(numbered)), load_images(config(numbered))

    assert numbers(first) == numbers(again)
    assert first.digest == again.digest


@pytest.mark.parametrize("split", ["train", "validation"])
def test_held_out_images_are_the_same_when_loaded_without_the_training_images(
    split: str, numbered: Path
) -> None:
    victim = numbers(load_images(config(numbered)))[split][0]
    damage(numbered / f"{victim:02d}.png", "header")

    assert load_held_out(config(numbered)).digest == load_images(config(numbered)).digest


def test_more_than_1_in_10_unreadable_images_are_refused(numbered: Path) -> None:
    for i in range(6):
        damage(numbered / f"{9 * i:02d}.png", "header")
    assert sum(sizes(load_images(config(numbered)))) == 54

    damage(numbered / "01.png", "header")

    with pytest.raises(
        DataError,
        match=r"7 of 60 images cannot be read, more than 1 in 10: "
        r"(image .*/\d\d\.png \(12 bytes .*?\), ){3}and 4 more; repair them, or remove them",
    ):
        load_images(config(numbered))


def test_unreadable_held_out_images_are_accepted_where_the_whole_source_is(tmp_path: Path) -> None:
    for i in range(300):
        Image.new("L", (2, 2), i % 256).save(tmp_path / f"{i:03d}.png")
    images = load_images(config(tmp_path, size=2))
    order = np.random.Generator(np.random.Philox(0)).permutation(300)
    for i in order[:6]:  # six of the 30 test images: a fifth of them, but 1 in 50 of all
        damage(tmp_path / f"{i:03d}.png", "header")

    fewer = load_images(config(tmp_path, size=2))

    assert sizes(fewer) == (240, 15, 15, 24)
    np.testing.assert_array_equal(fewer.test, images.test[6:])
    assert load_held_out(config(tmp_path, size=2)).digest == fewer.digest


def test_a_split_of_only_unreadable_images_is_refused(numbered: Path) -> None:
    (numbered / "train").mkdir()
    for file in numbered.glob("*.png"):
        file.rename(numbered / "train" / file.name)
    (numbered / "test").mkdir()
    (numbered / "test" / "a.png").write_bytes(b"not an image")

    with pytest.raises(
        DataError,
        match=r"leaves no images for test: none of the 1 can be read\. Unreadable are image .*test/a\.png \(12",
    ):
        load_images(config(numbered))
