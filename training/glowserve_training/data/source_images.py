"""The images of a data source, before they are prepared to a common shape."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from PIL import Image

from glowserve.images import InvalidImageError, UInt8Array, open_encoded, to_pil
from glowserve_training.data.unreadable import UnreadableImages, tolerated
from glowserve_training.errors import DataError

if TYPE_CHECKING:
    import datasets

# Errors that mean that this file is unreadable for good; any other error may be the disk's.
_UNREADABLE = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)


class SourceImages(Sequence[Image.Image]):
    """Images of any size, by index, decoded on access.

    Parquet files and datasets of the hub are memory-mapped by `datasets`, and only the paths of a folder's images are
    in memory: these sources may be larger than memory. Arrays of an .npz file have to fit.

    Access raises InvalidImageError if the image is damaged or its file is missing, and DataError if the file cannot be
    read for another reason.

    Args:
        rows: a dataset, or images uint8 [N, H, W, C].
        column: the dataset's column of images.
    """

    def __init__(self, rows: datasets.Dataset | UInt8Array, column: str = "image") -> None:
        self._rows = rows
        self._column = column

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Image.Image: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Image.Image]: ...
    def __getitem__(self, index: int | slice) -> Image.Image | Sequence[Image.Image]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if isinstance(self._rows, np.ndarray):
            return to_pil(self._rows[index])
        try:
            data = self._bytes(index)
        except _UNREADABLE as error:
            raise InvalidImageError(error.strerror) from None
        except OSError as error:
            raise DataError(
                f"{self.name(index)} cannot be read: {error}; try again, or check its disk"
            ) from error
        return open_encoded(data)

    def name(self, index: int) -> str:
        """How messages name an image: by its file, else by its index."""
        file = None if isinstance(self._rows, np.ndarray) else self._cell(index).get("path")
        return f"image {index if file is None else file}"

    def _bytes(self, index: int) -> bytes:
        cell = self._cell(index)
        if cell.get("bytes") is not None:
            return bytes(cell["bytes"])
        if cell.get("path") is None:
            raise InvalidImageError("the row has no image")
        return Path(cell["path"]).read_bytes()

    def _cell(self, index: int) -> dict[str, Any]:
        return self._rows[index][self._column] or {}


def native_shape(images: SourceImages) -> tuple[int, int]:
    """The shorter side of the first readable image in pixels, and its channels: 1 if it is grey, else 3.

    Raises:
        DataError: too many images before it are unreadable.
    """
    first = _first_readable(images)
    grey = first.mode in ("1", "L", "LA", "I", "F") or first.mode.startswith("I;16")
    return min(first.size), 1 if grey else 3


def _first_readable(images: SourceImages) -> Image.Image:
    unreadable = UnreadableImages()
    while unreadable.count < len(images):
        try:
            return images[unreadable.count]
        except InvalidImageError as error:
            unreadable.add(images.name(unreadable.count), error)
            if unreadable.count > tolerated(len(images)):
                break
    raise DataError(
        f"the first {unreadable.count} images cannot be read: {unreadable}; repair them, or remove them"
    )
