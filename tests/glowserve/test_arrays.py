"""Archives of arrays: what is written is read again, and what is no archive, or a large one, is refused."""

from __future__ import annotations

import io
from zipfile import ZIP_DEFLATED, ZipFile

import numpy as np
import pytest

from glowserve.arrays import read_arrays, write_arrays


def test_arrays_are_read_as_they_were_written_and_written_alike_every_time() -> None:
    arrays = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array(["x", "né"]), "c": np.int64(3)}
    data = write_arrays(arrays)
    assert data == write_arrays(arrays)
    found = read_arrays(data, 1000)
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)


def test_a_small_file_of_large_arrays_is_refused_before_they_are_unpacked() -> None:
    file = io.BytesIO()
    np.savez_compressed(file, a=np.zeros(2**20))
    assert len(file.getvalue()) < 2**16
    with pytest.raises(ValueError, match=r"it has 8\d+ bytes of arrays and may have 1000"):
        read_arrays(file.getvalue(), 1000)


def test_objects_and_members_that_are_no_arrays_are_refused() -> None:
    with_object, with_text = io.BytesIO(), io.BytesIO()
    np.savez(with_object, a=np.array([{}]))
    with ZipFile(with_text, "w", ZIP_DEFLATED) as archive:
        archive.writestr("a.txt", "text")
    for data in (b"", b"no archive", with_object.getvalue(), with_text.getvalue()):
        with pytest.raises(ValueError, match=r"no archive of arrays|Object arrays|is no array"):
            read_arrays(data, 1000)
