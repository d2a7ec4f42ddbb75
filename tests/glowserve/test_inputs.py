"""What callers pass as images, cut into portions that fit a call."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from glowserve.images import InvalidImageError, decode_png, encode_png
from glowserve.inputs import portions

MIB = 2**20


def blank(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("1", (width, height)).save(buffer, "PNG")
    return buffer.getvalue()


@settings(max_examples=50, deadline=None, derandomize=True)
@given(n=st.integers(1, 300), arrays=st.booleans())
def test_images_are_cut_into_portions_of_at_most_64_in_order(n: int, arrays: bool) -> None:
    images = (np.arange(n * 12) % 251).astype(np.uint8).reshape(n, 2, 2, 3)
    found = list(portions(images if arrays else [encode_png(image) for image in images]))
    assert [len(portion) for portion in found] == [64] * (n // 64) + [n % 64] * (n % 64 > 0)
    if arrays:
        np.testing.assert_array_equal(np.concatenate(found), images)
    else:
        files = [file for portion in found for file in portion]
        np.testing.assert_array_equal(np.stack([decode_png(file) for file in files]), images)


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([MIB] * 16, [16]),
        ([MIB] * 17, [16, 1]),
        ([9 * MIB, 9 * MIB, 1], [1, 2]),
        ([20 * MIB, 1, 20 * MIB], [1, 1, 1]),
    ],
)
def test_portions_of_files_have_at_most_16_mebibytes_or_one_file(
    sizes: list[int], expected: list[int]
) -> None:
    assert [len(portion) for portion in portions([bytes(size) for size in sizes])] == expected


def test_portions_of_an_array_have_at_most_16_mebibytes_or_one_image() -> None:
    megapixel = np.zeros((20, 1024, 1024, 1), np.uint8)
    assert [len(portion) for portion in portions(megapixel)] == [16, 4]
    assert [len(portion) for portion in portions(np.zeros((2, 5000, 5000, 1), np.uint8))] == [1, 1]


def test_portions_of_pictures_have_at_most_16_megapixels_or_one_picture() -> None:
    found = portions([blank(4000, 2000)] * 5 + [blank(8000, 8000)] * 2 + [blank(10, 10)] * 3)
    assert [len(portion) for portion in found] == [2, 2, 1, 1, 1, 3]


def test_files_are_read_as_they_are_needed(tmp_path: Path) -> None:
    (tmp_path / "there.png").write_bytes(blank(2, 2))
    found = portions([tmp_path / "there.png"] * 100 + [tmp_path / "nowhere.png"])
    assert len(next(found)) == 64
    with pytest.raises(FileNotFoundError):
        next(found)


def test_a_file_is_passed_on_as_it_is_if_the_service_reads_its_format(tmp_path: Path) -> None:
    picture = Image.effect_noise((9, 7), 50)
    for name in ("a.png", "a.jpg", "a.webp"):
        picture.save(tmp_path / name)
        assert list(portions(tmp_path / name)) == [[(tmp_path / name).read_bytes()]]
    for name in ("a.bmp", "a.gif", "a.tiff", "a.ppm"):
        picture.save(tmp_path / name)
        ((file,),) = portions(tmp_path / name)
        assert file.startswith(b"\x89PNG")
        with Image.open(io.BytesIO(file)) as converted:
            np.testing.assert_array_equal(np.asarray(converted.convert("L")), np.asarray(picture))


def test_bytes_are_passed_on_unseen_whatever_they_are() -> None:
    assert list(portions(b"no picture")) == [[b"no picture"]]


def test_arrays_of_one_shape_are_joined_and_of_several_refused() -> None:
    one, other = np.zeros((4, 4, 3), np.uint8), np.ones((5, 4, 3), np.uint8)
    (joined,) = portions([one, one])
    assert isinstance(joined, np.ndarray)
    assert joined.shape == (2, 4, 4, 3)
    with pytest.raises(InvalidImageError, match="arrays of several shapes"):
        list(portions([one, other]))


def test_an_array_is_passed_on_row_by_row_whatever_its_order_in_memory() -> None:
    images = np.arange(2 * 3 * 4 * 3, dtype=np.uint8).reshape(2, 3, 4, 3)
    (portion,) = portions(np.asfortranarray(images))
    assert isinstance(portion, np.ndarray)
    assert portion.tobytes() == images.tobytes()
    (portion,) = portions(images[:, ::-1])
    assert isinstance(portion, np.ndarray)
    assert portion.tobytes() == images[:, ::-1].copy().tobytes()


def test_any_iterable_of_images_will_do() -> None:
    def images() -> Iterator[bytes]:
        yield b"one"
        yield b"other"

    assert list(portions(images())) == [[b"one", b"other"]]  # type: ignore[arg-type]


@pytest.mark.parametrize("make", [list, tuple, lambda: np.zeros((0, 8, 8, 1), np.uint8), lambda: iter(())])
def test_no_images_are_an_error(make: Callable[[], Any]) -> None:
    with pytest.raises(ValueError, match="no images"):
        list(portions(make()))


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((8, 8)),
        np.zeros((8, 8), np.int64),
        np.zeros((8, 8), bool),
        np.zeros(8, np.uint8),
        np.uint8([[]]),
        np.zeros((8, 8, 2), np.uint8),
        np.zeros((8, 8, 4), np.uint8),
        np.zeros((3, 8, 8), np.uint8),
        np.zeros((8, 0, 3), np.uint8),
        np.zeros((2, 3, 8, 8), np.uint8),
        np.zeros((1, 1, 8, 8, 1), np.uint8),
        np.array(7, np.uint8),
    ],
)
def test_an_array_that_is_no_image_is_refused(array: Any) -> None:
    for images in (array, [array], [array, b"file"]):
        with pytest.raises(InvalidImageError, match="is no image"):
            list(portions(images))


@pytest.mark.parametrize(
    ("thing", "name"), [(7, "int"), (None, "NoneType"), (1.5, "float"), ({}.keys, "builtin")]
)
def test_what_is_no_image_at_all_is_named(thing: Any, name: str) -> None:
    for images in (thing, [thing], [b"file", thing]):
        with pytest.raises(TypeError, match=f"^{name}.*is no image; pass a path, bytes"):
            list(portions(images))


def test_a_list_does_not_hold_an_array_of_several() -> None:
    several = np.zeros((2, 8, 8, 1), np.uint8)
    for images in ([several], [several, several], [b"file", several]):
        with pytest.raises(InvalidImageError, match="in a list is no image"):
            list(portions(images))


def test_a_file_that_is_no_picture_is_named(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("text")
    with pytest.raises(InvalidImageError, match=f"^{tmp_path}/text.png: 4 bytes are not a picture"):
        list(portions([tmp_path / "text.png"]))
    with pytest.raises(IsADirectoryError):
        list(portions(tmp_path))
