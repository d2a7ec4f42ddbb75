"""Data sources: the digits, arrays, folders, parquet files, and names of datasets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from glowserve_training.data import load_images, open_source
from glowserve_training.data.hugging_face import datasets
from glowserve_training.errors import DataError
from PIL import Image

from tests.training.data.conftest import SaveImages
from tests.training.data.loading import config, contents, native_shape, rows, sizes


def test_digits_are_1797_grey_images_of_8x8_pixels() -> None:
    source = open_source("digits")

    assert {name: len(images) for name, images in source.items()} == {"train": 1797}
    assert native_shape(source["train"]) == (8, 1)


def test_the_17_pixel_values_of_the_digits_are_converted_to_4_bits() -> None:
    from sklearn.datasets import load_digits

    original = load_digits().images
    assert set(np.unique(original)) == set(range(17))
    images = open_source("digits")["train"]

    for i in range(0, 1797, 100):
        image = np.asarray(images[i])
        np.testing.assert_array_equal(image >> 4, np.minimum(original[i], 15))
        np.testing.assert_array_equal(image, np.minimum(original[i], 15) * 17)


# Arrays


@pytest.mark.parametrize(("shape", "channels"), [((60, 6, 6), 1), ((60, 6, 6, 1), 1), ((60, 6, 6, 3), 3)])
def test_an_npz_file_of_images_is_read_unchanged(
    shape: tuple[int, ...], channels: int, tmp_path: Path, rng: np.random.Generator
) -> None:
    array = rng.integers(0, 256, shape, dtype=np.uint8)
    np.savez(tmp_path / "a.npz", images=array, labels=np.zeros(60))

    source = open_source(str(tmp_path / "a.npz"))
    images = load_images(config(tmp_path / "a.npz", size=6, channels=channels))

    assert list(source) == ["train"]
    assert native_shape(source["train"]) == (6, channels)
    everything = np.concatenate([images.train, images.validation, images.calibration, images.test])
    assert everything.shape == (60, 6, 6, channels)
    assert contents(everything) == contents(array)


@pytest.mark.parametrize(
    ("array", "found"),
    [
        (np.zeros((60, 6, 6), np.float32), r"float32 \[60, 6, 6\]"),
        (np.zeros((60, 6, 6), np.int64), r"int64 \[60, 6, 6\]"),
        (np.zeros((60, 6, 6, 5), np.uint8), r"uint8 \[60, 6, 6, 5\]"),
        (np.zeros((60, 36), np.uint8), r"uint8 \[60, 36\]"),
    ],
)
def test_an_npz_file_with_a_wrong_array_is_refused(array: np.ndarray, found: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=array)

    with pytest.raises(DataError, match=rf"array 'images' is {found}; it must be uint8 \[N, H, W\]"):
        open_source(str(tmp_path / "a.npz"))


def test_an_npz_file_without_images_is_refused_with_its_arrays(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.zeros(3), labels=np.zeros(3))

    with pytest.raises(DataError, match="has x, labels; it must have an array 'images'"):
        open_source(str(tmp_path / "a.npz"))


def test_an_npz_file_with_zero_images_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=np.zeros((0, 6, 6), np.uint8))

    with pytest.raises(DataError, match="has no images"):
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


def test_images_of_all_sizes_and_formats_get_one_shape(tmp_path: Path, save_images: SaveImages) -> None:
    save_images(tmp_path / "a", 20, size=(10, 12))
    save_images(tmp_path / "b" / "c", 20, size=(31, 7), suffix="jpg")
    save_images(tmp_path / "d", 20, size=(8, 8), suffix="JPEG")
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / "a" / ".hidden.png").write_bytes(b"not an image either")

    images = load_images(config(tmp_path, channels=3))

    assert sizes(images) == (48, 3, 3, 6)
    assert images.train.shape[1:] == (8, 8, 3)


def test_subfolders_named_train_and_test_are_splits(tmp_path: Path, save_images: SaveImages) -> None:
    save_images(tmp_path / "train" / "cats", 60)
    save_images(tmp_path / "test" / "cats", 20)
    save_images(tmp_path / "valid", 10)

    images = load_images(config(tmp_path))

    assert sizes(images) == (60, 5, 5, 20)


def test_a_file_named_test_is_an_image_like_any_other(tmp_path: Path, save_images: SaveImages) -> None:
    save_images(tmp_path / "photos", 60)
    save_images(tmp_path / "photos" / "dev", 5)
    Image.new("L", (8, 8)).save(tmp_path / "photos" / "my-test.png")

    source = open_source(str(tmp_path / "photos"))

    assert {name: len(images) for name, images in source.items()} == {"train": 66}


def test_images_beside_a_folder_named_train_are_refused(tmp_path: Path, save_images: SaveImages) -> None:
    save_images(tmp_path / "train", 3)
    save_images(tmp_path / "more", 2)

    with pytest.raises(DataError, match=r"2 images outside of it .* such as .*more/0.png; move them"):
        open_source(str(tmp_path))


def test_a_folder_may_have_any_name(tmp_path: Path, save_images: SaveImages) -> None:
    save_images(tmp_path / "test [1] *", 3)

    assert len(open_source(str(tmp_path / "test [1] *"))["train"]) == 3


def test_the_images_of_a_folder_are_ordered_by_path(tmp_path: Path) -> None:
    for grey, name in enumerate(("a/2.png", "b/1.png", "c.png")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("L", (2, 2), grey).save(tmp_path / name)

    images = open_source(str(tmp_path))["train"]

    assert [image.getpixel((0, 0)) for image in images] == [0, 1, 2]
    assert [image.getpixel((0, 0)) for image in images[1:]] == [1, 2]


def test_a_folder_without_images_is_refused_with_the_known_formats(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing here")

    with pytest.raises(
        DataError, match=r"has no images; looked for \.apng, .*\.png.*, and for \.parquet; left out 1 \.txt$"
    ):
        open_source(str(tmp_path))


# Parquet


@pytest.mark.parametrize("column", ["image", "img", "photograph"])
def test_a_parquet_file_is_read_whatever_the_name_of_its_column(
    column: str, tmp_path: Path, rng: np.random.Generator
) -> None:
    rows(60, rng, column).to_parquet(tmp_path / "a.parquet")

    source = open_source(str(tmp_path / "a.parquet"))
    images = load_images(config(tmp_path / "a.parquet", channels=3))

    assert list(source) == ["train"]
    assert native_shape(source["train"]) == (9, 3)
    assert sizes(images) == (48, 3, 3, 6)


def test_a_folder_of_parquet_files_has_their_splits(tmp_path: Path, rng: np.random.Generator) -> None:
    (tmp_path / "all").mkdir()
    rows(60, rng).to_parquet(tmp_path / "all" / "train.parquet")
    rows(20, rng).to_parquet(tmp_path / "all" / "test.parquet")

    images = load_images(config(tmp_path / "all", channels=3))

    assert sizes(images) == (54, 3, 3, 20)


def test_a_parquet_file_without_images_is_refused_with_its_columns(tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"label": [1], "price": [2]}).to_parquet(tmp_path / "a.parquet")

    with pytest.raises(DataError, match="no column of images; its columns are label, price"):
        open_source(str(tmp_path / "a.parquet"))


def test_a_parquet_file_with_numbers_instead_of_images_is_refused(tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"image": [1, 2]}).to_parquet(tmp_path / "a.parquet")

    with pytest.raises(DataError, match=r"a\.parquet' cannot be read: Unsupported cast from int64"):
        open_source(str(tmp_path / "a.parquet"))


def test_a_damaged_parquet_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"not parquet at all")

    with pytest.raises(DataError, match=r"a\.parquet' cannot be read: .*[Pp]arquet.* It must be 'digits'"):
        open_source(str(tmp_path / "a.parquet"))


# Names


def test_a_file_of_another_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("1,2")

    with pytest.raises(DataError, match=r"it is a file; use a \.parquet or \.npz file"):
        open_source(str(tmp_path / "a.csv"))


@pytest.mark.parametrize("name", ["/no/such/folder", "./nothing", "../nothing.npz", "~/nothing", "a/b/c"])
def test_a_missing_path_is_not_looked_up_on_the_hub(name: str) -> None:
    with pytest.raises(DataError, match=f"data '{name}': there is no such file or folder"):
        open_source(name)


@pytest.mark.parametrize("name", ["no-such-dataset", "nobody/no-such-dataset"])
def test_an_unknown_name_is_refused_with_the_kinds_of_sources(name: str) -> None:
    with pytest.raises(
        DataError, match=f"data '{name}' cannot be read: .* It must be 'digits', a folder of images"
    ):
        open_source(name)


# Real data


def test_mnist10k_has_training_and_test_images(shared_data: Path) -> None:
    source = open_source(str(shared_data / "mnist10k" / "mnist10k.npz"))

    assert {name: len(images) for name, images in source.items()} == {"train": 8000, "test": 1000}
    assert native_shape(source["train"]) == (28, 1)


def test_cifar10_jpeg_is_a_folder_of_parquet_files(shared_data: Path) -> None:
    source = open_source(str(shared_data / "cifar10-jpeg"))

    assert {name: len(images) for name, images in source.items()} == {"train": 20_000, "test": 2000}
    assert native_shape(source["train"]) == (32, 3)
