"""Pictures from anywhere, prepared and split."""

from __future__ import annotations

import errno
import itertools
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pytest
from glowserve_training.data import (
    DataConfig,
    ImageData,
    load_held_out,
    load_images,
    native_shape,
    open_source,
)
from glowserve_training.errors import DataError
from PIL import Image

from glowserve.images import Preparation, UInt8Array

SavePictures = Callable[..., None]


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No network, and a cache that nobody else has."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture
def save_pictures(rng: np.random.Generator) -> SavePictures:
    """Fills a folder with noise, `save_pictures(folder, 60, size=(10, 12))`, 0.png and so on."""

    def save(folder: Path, n: int, *, size: tuple[int, int] = (10, 12), suffix: str = "png") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for i in range(n):
            pixels = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{i}.{suffix}")

    return save


def config(data: object, *, size: int = 8, channels: int = 1, **changes: object) -> DataConfig:
    return DataConfig(data=str(data), image_size=size, channels=channels, **changes)  # type: ignore[arg-type]


def sizes(images: ImageData) -> tuple[int, int, int]:
    return len(images.train), len(images.validation), len(images.test)


def contents(images: UInt8Array) -> set[bytes]:
    return {image.tobytes() for image in images}


# The digits


def test_the_digits_are_1797_grey_pictures_of_8_pixels() -> None:
    source = open_source("digits")

    assert {name: len(pictures) for name, pictures in source.items()} == {"train": 1797}
    assert native_shape(source["train"]) == (8, 1)


def test_the_17_grey_values_of_the_digits_become_4_bits() -> None:
    from sklearn.datasets import load_digits

    grey = load_digits().images
    assert set(np.unique(grey)) == set(range(17))
    pictures = open_source("digits")["train"]

    for i in range(0, 1797, 100):
        picture = np.asarray(pictures[i])
        np.testing.assert_array_equal(picture >> 4, np.minimum(grey[i], 15))  # the bins of 4 bits
        np.testing.assert_array_equal(
            picture, np.minimum(grey[i], 15) * 17
        )  # and the bytes that stand for them


def test_a_tenth_of_the_digits_is_held_out_for_validation_and_another_for_test() -> None:
    images = load_images(config("digits"))

    assert sizes(images) == (1797 - 2 * 179, 179, 179)
    assert images.train.dtype == np.uint8
    assert images.train.shape[1:] == (8, 8, 1)


def test_a_split_leaves_nothing_out_and_nothing_in_two_places(tmp_path: Path) -> None:
    numbered = np.arange(90, dtype=np.uint8)[:, None, None].repeat(4, 1).repeat(4, 2)
    np.savez(tmp_path / "numbered.npz", images=numbered)

    images = load_images(config(tmp_path / "numbered.npz", size=4))

    parts = [part[:, 0, 0, 0].tolist() for part in (images.train, images.validation, images.test)]
    assert sizes(images) == (72, 9, 9)
    assert sorted(itertools.chain(*parts)) == list(range(90))
    assert parts[0] != sorted(parts[0])


def test_the_split_is_a_function_of_its_seed() -> None:
    first, again, other = (load_images(config("digits", split_seed=seed)) for seed in (0, 0, 1))

    for name in ("train", "validation", "test"):
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name))
    assert first.digest == again.digest
    assert contents(first.test) != contents(other.test)
    assert first.digest != other.digest


def test_the_digest_tells_which_images_are_held_out() -> None:
    images = load_images(config("digits"))

    assert ImageData(images.validation, images.test, images.train[:7]).digest == images.digest
    changed = images.test.copy()
    changed[0, 0, 0, 0] ^= 1
    assert ImageData(images.validation, changed, images.train).digest != images.digest


def test_a_negative_split_seed_is_refused() -> None:
    with pytest.raises(ValueError, match="split_seed is -1; it must be 0 or more"):
        config("digits", split_seed=-1)


# Arrays


@pytest.mark.parametrize(("shape", "channels"), [((60, 6, 6), 1), ((60, 6, 6, 1), 1), ((60, 6, 6, 3), 3)])
def test_an_npz_file_of_images_is_read_as_it_is(
    shape: tuple[int, ...], channels: int, tmp_path: Path, rng: np.random.Generator
) -> None:
    array = rng.integers(0, 256, shape, dtype=np.uint8)
    np.savez(tmp_path / "a.npz", images=array, labels=np.zeros(60))

    source = open_source(str(tmp_path / "a.npz"))
    images = load_images(config(tmp_path / "a.npz", size=6, channels=channels))

    assert list(source) == ["train"]
    assert native_shape(source["train"]) == (6, channels)
    everything = np.concatenate([images.train, images.validation, images.test])
    assert everything.shape == (60, 6, 6, channels)
    assert contents(everything) == contents(array)


def test_the_splits_of_an_npz_file_are_kept(tmp_path: Path, rng: np.random.Generator) -> None:
    arrays = {
        f"{name}_images": rng.integers(0, 256, (n, 6, 6), dtype=np.uint8)
        for name, n in (("train", 60), ("val", 20), ("test", 30))
    }
    np.savez(tmp_path / "a.npz", **arrays, train_labels=np.zeros(60))

    images = load_images(config(tmp_path / "a.npz", size=6))

    assert sizes(images) == (60, 20, 30)
    assert contents(images.train) == contents(arrays["train_images"])
    assert contents(images.validation) == contents(arrays["val_images"])
    assert contents(images.test) == contents(arrays["test_images"])


def test_only_the_split_that_a_source_lacks_is_taken_from_its_training_images(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    train, test = (rng.integers(0, 256, (n, 6, 6), dtype=np.uint8) for n in (60, 20))
    np.savez(tmp_path / "a.npz", train_images=train, test_images=test)

    images = load_images(config(tmp_path / "a.npz", size=6))

    assert sizes(images) == (54, 6, 20)
    assert contents(images.test) == contents(test)
    assert contents(images.train) | contents(images.validation) == contents(train)


def test_at_most_a_thousand_images_are_held_out(tmp_path: Path, rng: np.random.Generator) -> None:
    train, test = (rng.integers(0, 256, (n, 2, 2), dtype=np.uint8) for n in (10_400, 1200))
    np.savez(tmp_path / "a.npz", train_images=train, test_images=test)

    images = load_images(config(tmp_path / "a.npz", size=2))

    assert sizes(images) == (9400, 1000, 1000)
    assert contents(images.test) <= contents(test)


@pytest.mark.parametrize(
    ("array", "found"),
    [
        (np.zeros((60, 6, 6), np.float32), r"float32 \[60, 6, 6\]"),
        (np.zeros((60, 6, 6), np.int64), r"int64 \[60, 6, 6\]"),
        (np.zeros((60, 6, 6, 4), np.uint8), r"uint8 \[60, 6, 6, 4\]"),
        (np.zeros((60, 36), np.uint8), r"uint8 \[60, 36\]"),
    ],
)
def test_an_npz_file_of_the_wrong_kind_is_refused(array: np.ndarray, found: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=array)

    with pytest.raises(DataError, match=rf"array 'images' is {found}; it must be uint8 \[N, H, W\]"):
        open_source(str(tmp_path / "a.npz"))


def test_an_npz_file_without_images_is_refused_with_what_it_holds(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.zeros(3), labels=np.zeros(3))

    with pytest.raises(DataError, match="holds x, labels; it must hold an array 'images'"):
        open_source(str(tmp_path / "a.npz"))


def test_an_npz_file_of_no_images_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=np.zeros((0, 6, 6), np.uint8))

    with pytest.raises(DataError, match="holds no images"):
        open_source(str(tmp_path / "a.npz"))


def test_a_damaged_npz_file_is_refused(tmp_path: Path, rng: np.random.Generator) -> None:
    np.savez(tmp_path / "whole.npz", images=rng.integers(0, 256, (60, 6, 6), dtype=np.uint8))
    data = (tmp_path / "whole.npz").read_bytes()
    np.save(tmp_path / "single.npy", np.zeros((60, 6, 6), np.uint8))
    np.savez(tmp_path / "objects.npz", images=np.array([None] * 60, dtype=object))

    for name, content in {
        "half.npz": data[: len(data) // 2],
        "foreign.npz": b"something else",
        "empty.npz": b"",
        "single.npz": (tmp_path / "single.npy").read_bytes(),
        "objects.npz": (tmp_path / "objects.npz").read_bytes(),
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=rf"{name} cannot be read as an .npz file of plain arrays"):
            open_source(str(tmp_path / name))


# Folders


def test_a_folder_of_all_sizes_and_kinds_becomes_images_of_one_shape(
    tmp_path: Path, save_pictures: SavePictures
) -> None:
    save_pictures(tmp_path / "a", 20, size=(10, 12))
    save_pictures(tmp_path / "b" / "c", 20, size=(31, 7), suffix="jpg")
    save_pictures(tmp_path / "d", 20, size=(8, 8), suffix="JPEG")
    (tmp_path / "notes.txt").write_text("not a picture")
    (tmp_path / "a" / ".hidden.png").write_bytes(b"not a picture either")

    images = load_images(config(tmp_path, channels=3))

    assert sizes(images) == (48, 6, 6)
    assert images.train.shape[1:] == (8, 8, 3)


def test_a_picture_of_a_folder_is_cropped_in_its_middle_and_resized(
    tmp_path: Path, save_pictures: SavePictures
) -> None:
    save_pictures(tmp_path / "all", 59)
    pixels = np.zeros((8, 24, 3), np.uint8)
    pixels[:, :8], pixels[:, 8:16], pixels[:, 16:] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    Image.fromarray(pixels).save(tmp_path / "all" / "flag.png")

    sharp = Preparation(filter="box")
    images = load_images(config(tmp_path / "all", size=4, channels=3, preparation=sharp))

    green = np.zeros((4, 4, 3), np.uint8)
    green[..., 1] = 255
    everything = np.concatenate([images.train, images.validation, images.test])
    assert green.tobytes() in contents(everything)


def test_the_filter_of_the_preparation_is_used(tmp_path: Path, save_pictures: SavePictures) -> None:
    save_pictures(tmp_path / "all", 50, size=(20, 20))

    nearest, bicubic = (
        load_images(config(tmp_path / "all", preparation=Preparation(filter=name))).train
        for name in ("nearest", "bicubic")
    )

    assert nearest.shape == bicubic.shape
    assert (nearest != bicubic).mean() > 0.5


@pytest.mark.parametrize(
    ("mode", "channels"), [("L", 1), ("1", 1), ("LA", 1), ("RGB", 3), ("RGBA", 3), ("P", 3)]
)
def test_a_grey_picture_has_one_channel_and_any_other_three(mode: str, channels: int, tmp_path: Path) -> None:
    Image.new("RGBA", (11, 9), (200, 30, 30, 200)).convert(mode).save(tmp_path / "a.png")

    assert native_shape(open_source(str(tmp_path))["train"]) == (9, channels)


def test_subfolders_called_train_and_test_are_splits(tmp_path: Path, save_pictures: SavePictures) -> None:
    save_pictures(tmp_path / "train" / "cats", 60)
    save_pictures(tmp_path / "test" / "cats", 20)
    save_pictures(tmp_path / "valid", 10)

    images = load_images(config(tmp_path))

    assert sizes(images) == (60, 10, 20)


def test_a_file_called_test_is_a_picture_like_any_other(tmp_path: Path, save_pictures: SavePictures) -> None:
    save_pictures(tmp_path / "photos", 60)
    save_pictures(tmp_path / "photos" / "dev", 5)
    Image.new("L", (8, 8)).save(tmp_path / "photos" / "my-test.png")

    source = open_source(str(tmp_path / "photos"))

    assert {name: len(pictures) for name, pictures in source.items()} == {"train": 66}


def test_pictures_beside_a_folder_called_train_are_not_left_out_silently(
    tmp_path: Path, save_pictures: SavePictures
) -> None:
    save_pictures(tmp_path / "train", 3)
    save_pictures(tmp_path / "more", 2)

    with pytest.raises(DataError, match=r"2 pictures outside of it .* such as .*more/0.png; move them"):
        open_source(str(tmp_path))


def test_a_folder_may_have_any_name(tmp_path: Path, save_pictures: SavePictures) -> None:
    save_pictures(tmp_path / "test [1] *", 3)

    assert len(open_source(str(tmp_path / "test [1] *"))["train"]) == 3


def test_the_pictures_of_a_folder_come_in_the_order_of_their_paths(tmp_path: Path) -> None:
    for grey, name in enumerate(("a/2.png", "b/1.png", "c.png")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("L", (2, 2), grey).save(tmp_path / name)

    pictures = open_source(str(tmp_path))["train"]

    assert [picture.getpixel((0, 0)) for picture in pictures] == [0, 1, 2]
    assert [picture.getpixel((0, 0)) for picture in pictures[1:]] == [1, 2]


def test_too_few_images_are_refused(tmp_path: Path, save_pictures: SavePictures) -> None:
    save_pictures(tmp_path / "few", 49)
    with pytest.raises(DataError, match=r"few' has 49 images; training and held-out proof need 50 or more"):
        load_images(config(tmp_path / "few"))

    save_pictures(tmp_path / "few", 50)
    assert sizes(load_images(config(tmp_path / "few"))) == (40, 5, 5)


def test_a_source_that_leaves_nothing_to_validate_with_is_refused(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    train, test = (rng.integers(0, 256, (n, 6, 6), dtype=np.uint8) for n in (9, 60))
    np.savez(tmp_path / "a.npz", train_images=train, test_images=test)

    with pytest.raises(DataError, match="no images for validation: it has 9 for train, 60 for test"):
        load_images(config(tmp_path / "a.npz", size=6))


def test_a_folder_without_pictures_is_refused_with_what_was_looked_for(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing here")

    with pytest.raises(DataError, match=r"holds no images; looked for \.bmp, .*\.png.*, and for \.parquet"):
        open_source(str(tmp_path))


# Parquet


def rows(n: int, rng: np.random.Generator, column: str = "image") -> datasets.Dataset:
    pictures = [Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)) for _ in range(n)]
    return datasets.Dataset.from_dict(
        {"label": list(range(n)), column: pictures},
        features=datasets.Features({"label": datasets.Value("int64"), column: datasets.Image()}),
    )


@pytest.mark.parametrize("column", ["image", "img", "photograph"])
def test_a_parquet_file_is_read_whatever_its_column_is_called(
    column: str, tmp_path: Path, rng: np.random.Generator
) -> None:
    rows(60, rng, column).to_parquet(tmp_path / "a.parquet")

    source = open_source(str(tmp_path / "a.parquet"))
    images = load_images(config(tmp_path / "a.parquet", channels=3))

    assert list(source) == ["train"]
    assert native_shape(source["train"]) == (9, 3)
    assert sizes(images) == (48, 6, 6)


def test_a_folder_of_parquet_files_has_their_splits(tmp_path: Path, rng: np.random.Generator) -> None:
    (tmp_path / "all").mkdir()
    rows(60, rng).to_parquet(tmp_path / "all" / "train.parquet")
    rows(20, rng).to_parquet(tmp_path / "all" / "test.parquet")

    images = load_images(config(tmp_path / "all", channels=3))

    assert sizes(images) == (54, 6, 20)


def test_a_parquet_file_without_pictures_is_refused_with_its_columns(tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"label": [1], "price": [2]}).to_parquet(tmp_path / "a.parquet")

    with pytest.raises(DataError, match="no column of images; its columns are label, price"):
        open_source(str(tmp_path / "a.parquet"))


def test_a_parquet_file_with_numbers_for_pictures_is_refused(tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"image": [1, 2]}).to_parquet(tmp_path / "a.parquet")

    with pytest.raises(DataError, match=r"a\.parquet' cannot be read: Unsupported cast from int64"):
        open_source(str(tmp_path / "a.parquet"))


def test_a_source_without_a_single_readable_picture_has_no_shape(tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"image": ["nowhere.png"]}).to_parquet(tmp_path / "a.parquet")

    with pytest.raises(
        DataError, match=r"first 1 pictures .* image nowhere\.png \(No such file.*; repair them"
    ):
        native_shape(open_source(str(tmp_path / "a.parquet"))["train"])


def test_a_damaged_parquet_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"not parquet at all")

    with pytest.raises(DataError, match=r"a\.parquet' cannot be read: .*[Pp]arquet.* It must be 'digits'"):
        open_source(str(tmp_path / "a.parquet"))


# Damage


def damage(picture: Path, how: str) -> None:
    data = picture.read_bytes()
    if how == "header":
        picture.write_bytes(b"not a picture")
    elif how == "pixels":
        picture.write_bytes(data[: data.index(b"IDAT") + 8])
    else:
        picture.write_bytes(b"")


@pytest.fixture
def numbered(tmp_path: Path) -> Path:
    """A folder of 60 grey pictures, of 8 x 8 pixels that have the picture's number."""
    (tmp_path / "all").mkdir()
    for i in range(60):
        Image.new("L", (8, 8), i).save(tmp_path / "all" / f"{i:02d}.png")
    return tmp_path / "all"


def numbers(images: ImageData) -> dict[str, list[int]]:
    return {name: getattr(images, name)[:, 0, 0, 0].tolist() for name in ("train", "validation", "test")}


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("header", "13 bytes are not a picture"),
        ("pixels", "the picture is damaged"),
        ("empty", "0 bytes are not a picture"),
        ("missing", "No such file or directory"),
    ],
)
@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_a_damaged_picture_is_left_out_of_its_split_and_named(
    split: str, how: str, reason: str, numbered: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    whole = numbers(load_images(config(numbered)))
    victim = whole[split][2]
    picture = numbered / f"{victim:02d}.png"
    if how == "missing":
        numbered = of_paths(numbered, missing=victim)
        name = "nowhere.png"
    else:
        damage(picture, how)
        name = str(picture)
    assert capfd.readouterr().err == ""

    images = load_images(config(numbered))

    assert numbers(images) == whole | {split: [number for number in whole[split] if number != victim]}
    line = capfd.readouterr().err
    assert line.startswith(
        f"glowserve: 1 of 60 pictures cannot be read and are left out: image {name} ({reason}"
    )
    assert line.count("\n") == 1


def of_paths(folder: Path, *, missing: int) -> Path:
    """A parquet file that names the pictures of a folder, and one that is not there."""
    files: list[str] = [str(file) for file in sorted(folder.iterdir())]
    files[missing] = "nowhere.png"
    datasets.Dataset.from_dict({"image": files}).to_parquet(folder.parent / "paths.parquet")
    return folder.parent / "paths.parquet"


def test_a_row_without_a_picture_is_left_out(
    tmp_path: Path, rng: np.random.Generator, capfd: pytest.CaptureFixture[str]
) -> None:
    pictures = [*rows(59, rng)["image"], None]
    features = datasets.Features({"image": datasets.Image()})
    datasets.Dataset.from_dict({"image": pictures}, features=features).to_parquet(tmp_path / "a.parquet")

    assert sum(sizes(load_images(config(tmp_path / "a.parquet")))) == 59
    assert "left out: image 59 (there is none, the row is empty)\n" in capfd.readouterr().err


def test_which_images_remain_is_a_function_of_the_data(numbered: Path) -> None:
    damage(numbered / "17.png", "pixels")

    first, again = load_images(config(numbered)), load_images(config(numbered))

    assert numbers(first) == numbers(again)
    assert first.digest == again.digest


@pytest.mark.parametrize("split", ["train", "validation"])
def test_what_is_held_out_is_the_same_without_the_training_images(split: str, numbered: Path) -> None:
    victim = numbers(load_images(config(numbered)))[split][0]
    damage(numbered / f"{victim:02d}.png", "header")

    assert load_held_out(config(numbered)).digest == load_images(config(numbered)).digest


def test_more_than_1_in_100_damaged_pictures_are_refused(tmp_path: Path) -> None:
    for i in range(300):
        Image.new("L", (2, 2), i % 256).save(tmp_path / f"{i:03d}.png")
    for i in (5, 50, 150):
        damage(tmp_path / f"{i:03d}.png", "header")
    assert sum(sizes(load_images(config(tmp_path, size=2)))) == 297

    for i in (7, 9):
        damage(tmp_path / f"{i:03d}.png", "header")

    with pytest.raises(
        DataError,
        match=r"5 of 300 pictures cannot be read, more than 1 in 100: "
        r"(image .*/\d\d\d\.png \(13 bytes .*?\), ){3}and 2 more; repair them, or remove them",
    ):
        load_images(config(tmp_path, size=2))


def test_held_out_pictures_are_not_refused_where_all_together_are_not(tmp_path: Path) -> None:
    for i in range(300):
        Image.new("L", (2, 2), i % 256).save(tmp_path / f"{i:03d}.png")
    images = load_images(config(tmp_path, size=2))
    order = np.random.Generator(np.random.Philox(0)).permutation(300)
    for i in order[:3]:  # all of the 30 for test: a tenth of them, and 1 in 100 of all
        damage(tmp_path / f"{i:03d}.png", "header")

    fewer = load_images(config(tmp_path, size=2))

    assert sizes(fewer) == (240, 30, 27)
    np.testing.assert_array_equal(fewer.test, images.test[3:])
    assert load_held_out(config(tmp_path, size=2)).digest == fewer.digest


def test_of_a_few_pictures_one_may_be_damaged_and_not_two(numbered: Path) -> None:
    damage(numbered / "17.png", "header")
    assert sum(sizes(load_images(config(numbered)))) == 59

    damage(numbered / "18.png", "header")
    with pytest.raises(DataError, match="2 of 60 pictures cannot be read"):
        load_images(config(numbered))


def test_a_split_of_damaged_pictures_alone_is_refused(numbered: Path) -> None:
    (numbered / "train").mkdir()
    for file in numbered.glob("*.png"):
        file.rename(numbered / "train" / file.name)
    (numbered / "test").mkdir()
    (numbered / "test" / "a.png").write_bytes(b"not a picture")

    with pytest.raises(
        DataError,
        match=r"leaves no images for test: none of its 1 pictures can be read; damaged are image .*test/a\.png \(13",
    ):
        load_images(config(numbered))


def test_a_damaged_first_picture_does_not_hide_the_shape_of_the_others(numbered: Path) -> None:
    damage(numbered / "00.png", "header")
    assert native_shape(open_source(str(numbered))["train"]) == (8, 1)

    damage(numbered / "01.png", "header")
    with pytest.raises(DataError, match=r"the first 2 pictures cannot be read: image .*00\.png \(13 bytes"):
        native_shape(open_source(str(numbered))["train"])


def test_trouble_with_the_disk_is_not_taken_for_a_damaged_picture(
    numbered: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_bytes = Path.read_bytes

    def failing(path: Path) -> bytes:
        if path.name == "17.png":
            raise OSError(errno.EIO, "Input/output error", str(path))
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", failing)

    with pytest.raises(DataError, match=r"17\.png cannot be read: .*Input/output error.*; try again"):
        load_images(config(numbered))


# Names


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("1,2")

    with pytest.raises(DataError, match=r"is a file; files that can be read are \.parquet and \.npz"):
        open_source(str(tmp_path / "a.csv"))


@pytest.mark.parametrize("name", ["/no/such/folder", "./nothing", "../nothing.npz", "~/nothing", "a/b/c"])
def test_a_path_where_nothing_is_is_not_taken_for_a_name_on_the_hub(name: str) -> None:
    with pytest.raises(DataError, match=f"data '{name}': there is no such file or folder"):
        open_source(name)


@pytest.mark.parametrize("name", ["no-such-dataset", "nobody/no-such-dataset"])
def test_a_name_that_cannot_be_found_is_refused_with_what_it_may_be(name: str) -> None:
    with pytest.raises(
        DataError, match=f"data '{name}' cannot be read: .* It must be 'digits', a folder of images"
    ):
        open_source(name)


# Real data


def test_mnist10k_has_training_and_test_images(shared_data: Path) -> None:
    source = open_source(str(shared_data / "mnist10k" / "mnist10k.npz"))

    assert {name: len(pictures) for name, pictures in source.items()} == {"train": 8000, "test": 1000}
    assert native_shape(source["train"]) == (28, 1)


def test_cifar10_jpeg_is_a_folder_of_parquet_files(shared_data: Path) -> None:
    source = open_source(str(shared_data / "cifar10-jpeg"))

    assert {name: len(pictures) for name, pictures in source.items()} == {"train": 20_000, "test": 2000}
    assert native_shape(source["train"]) == (32, 3)
