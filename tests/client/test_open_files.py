"""Open files and other objects as images: how they are read, and which are refused."""

from __future__ import annotations

import gzip
import io
import itertools
import mmap
import os
import tempfile
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from glowserve.client.inputs import portions, read_portions, together
from glowserve.images import InvalidImageError, UInt8Array, encode_png

PNG = encode_png(np.arange(64, dtype=np.uint8).reshape(8, 8, 1))


def spooled() -> Any:
    file = tempfile.SpooledTemporaryFile()  # noqa: SIM115
    file.write(PNG)
    return file


def zipped() -> Any:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.png", PNG)
    return zipfile.ZipFile(buffer).open("a.png")


def mapped() -> Any:
    file = mmap.mmap(-1, len(PNG))
    file.write(PNG)
    return file


def pipe() -> Any:
    reading, writing = os.pipe()
    os.write(writing, PNG)
    os.close(writing)
    return os.fdopen(reading, "rb")


@pytest.mark.parametrize(
    "make", [spooled, zipped, mapped, pipe, lambda: gzip.GzipFile(fileobj=io.BytesIO(gzip.compress(PNG)))]
)
def test_every_kind_of_open_file_is_read_from_its_start(make: Callable[[], Any]) -> None:
    with make() as file:
        assert list(portions(file)) == [[PNG]]
    with make() as file, make() as other:
        assert list(read_portions(iter([file, other]))) == [[PNG, PNG]]


@pytest.mark.parametrize("position", [0, 5, len(PNG), len(PNG) + 9])
def test_an_open_file_keeps_its_position(position: int) -> None:
    file = io.BytesIO(PNG)
    file.seek(position)
    for _ in range(2):
        assert list(portions([file, file])) == [[PNG, PNG]]
        assert list(read_portions(file)) == [[PNG]]
        assert together(file, PNG) == [PNG, PNG]
        assert file.tell() == position


def test_a_closed_file_and_an_empty_one() -> None:
    file = io.BytesIO(PNG)
    file.close()
    with pytest.raises(ValueError, match=r"images\[0\]: .*closed"):
        list(portions(file))
    assert list(portions(io.BytesIO())) == [[b""]]


class Upload:
    """The files of web frameworks have a `read` that is awaited."""

    async def read(self) -> bytes:
        return PNG


@pytest.mark.parametrize(
    ("file", "words"),
    [
        (
            io.StringIO("text"),
            r"read\(\) of StringIO returns str; pass a file opened in binary mode, or its bytes",
        ),
        (Upload(), r"read\(\) of Upload returns coroutine; pass a file opened in binary mode, or its bytes"),
    ],
)
def test_a_file_that_does_not_give_bytes_is_refused(file: Any, words: str) -> None:
    with pytest.raises(TypeError, match=rf"^images\[0\]: {words}"):
        list(portions(file))
    with pytest.raises(TypeError, match=rf"^images\[2\]: {words}"):
        list(read_portions(iter([PNG, PNG, file])))


def test_errors_name_the_index_and_the_type(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(PNG)
    good = [tmp_path / "a.png", PNG, bytearray(PNG), Image.new("L", (8, 8))]
    damaged = Image.new("F", (8, 8))
    for wrong, kind, words in (
        (3.5, TypeError, "float is no image"),
        ([PNG], TypeError, "list is no image"),
        ({"image": PNG}, TypeError, "dict is no image"),
        (np.zeros((8, 8)), InvalidImageError, "an array of float64 is no image; pass uint8, 0 to 255"),
        (np.zeros((8, 8, 5), np.uint8), InvalidImageError, r"an array of shape \[8, 8, 5\] is no image"),
        (damaged, InvalidImageError, "it holds floating-point values"),
    ):
        images: list[Any] = [*good, wrong]
        for read in (portions, read_portions):
            for given in (images, iter(images)):
                with pytest.raises(kind, match=rf"^images\[4\]: {words}"):
                    list(read(given))


def test_one_wrong_image_has_no_index() -> None:
    for read in (portions, read_portions):
        with pytest.raises(InvalidImageError, match=r"^an array of float32 is no image"):
            list(read(np.zeros((8, 8), np.float32)))  # type: ignore[arg-type]


def test_bytes_of_other_formats_become_png_and_unreadable_bytes_stay() -> None:
    buffer = io.BytesIO()
    Image.effect_noise((9, 7), 50).save(buffer, "BMP")
    for image in (buffer.getvalue(), bytearray(buffer.getvalue()), buffer):
        ((file,),) = portions(image)
        assert file.startswith(b"\x89PNG")
    several = io.BytesIO()
    picture = Image.effect_noise((9, 7), 50)
    picture.save(several, "MPO", save_all=True, append_images=[picture])
    assert list(portions(several)) == [[several.getvalue()]]
    assert list(portions([b"no picture", PNG[:40]])) == [[b"no picture", PNG[:40]]]


@pytest.mark.parametrize("read", [portions, read_portions])
def test_an_iterator_of_many_large_images_needs_the_memory_of_a_portion(
    read: Callable[[Any], Iterator[Any]],
) -> None:
    """A gigabyte of images; a portion has 16 MiB."""

    def images() -> Iterator[UInt8Array]:
        for _ in range(1000):
            yield np.zeros((1024, 1024, 1), np.uint8)

    tracemalloc.start()
    try:
        assert sum(len(portion) for portion in read(images())) == 1000
        assert tracemalloc.get_traced_memory()[1] < 100 * 2**20
    finally:
        tracemalloc.stop()


def test_an_iterator_is_read_when_a_portion_is_taken() -> None:
    read = itertools.count()
    found = portions(PNG for _ in read)
    assert len(next(found)) == 64
    assert next(read) <= 66


@pytest.mark.parametrize("nothing", [iter(()), (image for image in ()), map(bytes, [])])
def test_an_iterator_without_images_is_an_error(nothing: Any) -> None:
    with pytest.raises(ValueError, match="there are no images; pass at least one"):
        list(portions(nothing))
