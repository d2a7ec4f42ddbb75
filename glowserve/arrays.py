"""Archives of NumPy arrays (.npz) as bytes. Anybody may have written the bytes that are read."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any
from zipfile import ZipFile

import numpy as np
import numpy.typing as npt

Arrays = Mapping[str, npt.NDArray[Any]]

# Of the archive's headers.
_MOST_HEADERS = 2**16


def write_arrays(arrays: Mapping[str, npt.ArrayLike]) -> bytes:
    """The content of an archive with these arrays; the same ones always make the same bytes."""
    file = io.BytesIO()
    named: dict[str, Any] = dict(arrays)
    np.savez(file, **named)
    return file.getvalue()


def read_arrays(data: bytes, most: int) -> Arrays:
    """The arrays of an archive, by name.

    Args:
        data: its content.
        most: bytes of all arrays together.

    Raises:
        ValueError: it is no archive of arrays, or has more bytes; the message says which.
    """
    try:
        with ZipFile(io.BytesIO(data)) as archive:  # a small file may hold large arrays
            size = sum(info.file_size for info in archive.infolist())
        if size > most + _MOST_HEADERS:
            raise ValueError(f"it has {size} bytes of arrays and may have {most}")
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            arrays = dict(file)
    except ValueError:
        raise
    except Exception as error:  # zip and NumPy raise many kinds of errors for foreign bytes
        raise ValueError(f"it is no archive of arrays ({type(error).__name__})") from error
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray):  # a member that is no array is read as bytes
            raise ValueError(f"its member {name!r:.100} is no array")
    return arrays
