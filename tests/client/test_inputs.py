"""The portions that the images of a call are split into."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from glowserve.client.inputs import portions, read_portions, together
from glowserve.images import InvalidImageError, decode_png, encode_png

MIB = 2**20


def blank(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("1", (width, height)).save(buffer, "PNG")
    return buffer.getvalue()


@settings(max_examples=50, deadline=None, derandomize=True)
@given(n=st.integers(1, 300), arrays=st.booleans())
def test_images_are_split_in_order_into_portions_of_at_most_64(n: int, arrays: bool) -> None:
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
def test_portions_of_files_have_at_most_16_mib_or_one_file(sizes: list[int], expected: list[int]) -> None:
    assert [len(portion) for portion in portions([bytes(size) for size in sizes])] == expected


def test_portions_of_an_array_have_at_most_16_mib_or_one_image() -> None:
    megapixel = np.zeros((20, 1024, 1024, 1), np.uint8)
    assert [len(portion) for portion in portions(megapixel)] == [16, 4]
    assert [len(portion) for portion in portions(np.zeros((2, 5000, 5000, 1), np.uint8))] == [1, 1]


def test_portions_of_pictures_have_at_most_16_megapixels_or_one_picture() -> None:
    found = portions([blank(4000, 2000)] * 5 + [blank(8000, 8000)] * 2 + [blank(10, 10)] * 3)
    assert [len(portion) for portion in found] == [2, 2, 1, 1, 1, 3]


def test_a_file_is_read_when_its_portion_is_taken(tmp_path: Path) -> None:
    (tmp_path / "there.png").write_bytes(blank(2, 2))
    found = portions([tmp_path / "there.png"] * 100 + [tmp_path / "nowhere.png"])
    assert len(next(found)) == 64
    with pytest.raises(FileNotFoundError):
        next(found)


def test_a_file_is_converted_to_png_unless_the_service_reads_its_format(tmp_path: Path) -> None:
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


def test_bytes_are_not_checked() -> None:
    assert list(portions(b"no picture")) == [[b"no picture"]]


def test_arrays_of_one_shape_are_stacked_and_of_several_shapes_refused() -> None:
    one, other = np.zeros((4, 4, 3), np.uint8), np.ones((5, 4, 3), np.uint8)
    (joined,) = portions([one, one])
    assert isinstance(joined, np.ndarray)
    assert joined.shape == (2, 4, 4, 3)
    with pytest.raises(InvalidImageError, match="arrays of several shapes"):
        list(portions([one, other]))


def test_an_array_of_any_memory_order_becomes_row_major() -> None:
    images = np.arange(2 * 3 * 4 * 3, dtype=np.uint8).reshape(2, 3, 4, 3)
    (portion,) = portions(np.asfortranarray(images))
    assert isinstance(portion, np.ndarray)
    assert portion.tobytes() == images.tobytes()
    (portion,) = portions(images[:, ::-1])
    assert isinstance(portion, np.ndarray)
    assert portion.tobytes() == images[:, ::-1].copy().tobytes()


def test_any_iterable_of_images_is_accepted() -> None:
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
        np.zeros((8, 8, 5), np.uint8),
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
def test_an_object_of_another_type_is_named(thing: Any, name: str) -> None:
    for images, place in ((thing, ""), ([thing], r"images\[0\]: "), ([b"file", thing], r"images\[1\]: ")):
        with pytest.raises(TypeError, match=f"^{place}{name}.*is no image; pass a path, bytes"):
            list(portions(images))


def test_an_array_of_several_images_in_a_list_is_refused() -> None:
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


# Unbounded iterables, and pairs


@settings(max_examples=50, deadline=None, derandomize=True)
@given(kinds=st.lists(st.integers(0, 2), max_size=300), run=st.integers(1, 70))
def test_images_of_an_iterable_are_split_in_order_into_portions_of_at_most_64(
    kinds: list[int], run: int
) -> None:
    """Kinds: a file, an array, an array of another shape. Each is repeated `run` times."""
    images: list[Any] = []
    for i, kind in enumerate(kind for kind in kinds[:20] for _ in range(run)):
        array = np.full((1 + kind, 2, 1), i % 256, np.uint8)
        images.append(array if kind else encode_png(array))
    found: list[Any] = []
    for portion in read_portions(iter(images)):
        assert 1 <= len(portion) <= 64
        found.extend(portion)
    assert len(found) == len(images)
    for image, given_ in zip(found, images, strict=True):
        if isinstance(given_, bytes):
            assert image == given_
        else:
            np.testing.assert_array_equal(image, given_)


def test_images_of_an_unbounded_iterable_are_read_when_a_portion_is_taken() -> None:
    for image in (blank(2, 2), np.zeros((4, 4), np.uint8)):
        read = itertools.count()
        found = read_portions(image for _ in read)
        for taken in range(1, 4):
            assert len(next(found)) == 64
            assert next(read) <= 64 * taken + 1 + taken


def test_portions_of_an_iterable_have_the_same_limits() -> None:
    assert [len(portion) for portion in read_portions(iter([bytes(MIB)] * 17))] == [16, 1]
    assert [len(portion) for portion in read_portions(iter([blank(4000, 2000)] * 5))] == [2, 2, 1]
    megapixels = iter(np.zeros((20, 1024, 1024, 1), np.uint8))
    assert [len(portion) for portion in read_portions(megapixels)] == [16, 4]


def test_an_iterable_may_be_one_image_or_an_array_of_several(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(blank(2, 2))
    for image in (tmp_path / "a.png", str(tmp_path / "a.png"), blank(2, 2)):
        assert list(read_portions(image)) == [[blank(2, 2)]]
    for shape in ((8, 9), (8, 9, 1), (1, 8, 9, 1)):
        (portion,) = read_portions(np.zeros(shape, np.uint8))
        assert isinstance(portion, np.ndarray)
        assert portion.shape == (1, 8, 9, 1)
    assert list(read_portions([])) == []


def test_an_object_that_is_no_image_is_refused_when_it_is_read() -> None:
    several = np.zeros((2, 8, 8, 1), np.uint8)
    for images, kind, words in (
        ([b"file", several], InvalidImageError, "in a list is no image"),
        ([b"file", np.zeros((8, 8))], InvalidImageError, "float64 is no image"),
        ([b"file", 7], TypeError, "int is no image"),
        (7, TypeError, "int is no image"),
        (np.zeros(8, np.uint8), InvalidImageError, "is no image"),
    ):
        with pytest.raises(kind, match=words):
            list(read_portions(images))  # type: ignore[arg-type]


def test_a_pair_is_one_portion_however_large_its_images(tmp_path: Path) -> None:
    large = np.zeros((5000, 5000, 1), np.uint8)
    joined = together(large, large[:, :, 0])
    assert isinstance(joined, np.ndarray)
    assert joined.shape == (2, 5000, 5000, 1)
    assert together(blank(8000, 8000), bytes(20 * MIB)) == [blank(8000, 8000), bytes(20 * MIB)]
    files = together(np.zeros((4, 4), np.uint8), blank(2, 2))
    assert isinstance(files, list)
    np.testing.assert_array_equal(decode_png(files[0]), np.zeros((4, 4, 1)))
