"""The images of a data source, before they are prepared to a common shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from PIL import Image

from glowserve.images import FILE_FORMATS, InvalidImageError, UInt8Array, open_encoded, to_pil
from glowserve.output import printable
from glowserve_training.errors import DataError

if TYPE_CHECKING:
    from glowserve_training.data.hugging_face import datasets

# Errors that mean that this file is unreadable for good; any other error may be the disk's.
_UNREADABLE = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)


class ImageFiles:
    """Images in files, as rows that `SourceImages` reads.

    `datasets` cannot hold names that are not UTF-8.

    Args:
        folder: the source's folder.
        names: paths from there.
    """

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self._folder, self.names = folder, names

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> dict[str, dict[str, str]]:
        return {"image": {"path": f"{self._folder}/{self.names[index]}"}}


class SourceImages(Sequence[Image.Image]):
    """Images of any size, by index, decoded on access.

    Parquet files and datasets of the hub are memory-mapped by `datasets`, and only the paths of a folder's images are
    in memory: these sources may be larger than memory. Arrays of an .npz file have to fit.

    Access raises InvalidImageError if the image is damaged or its file is missing, and DataError if the file cannot be
    read for another reason.

    Args:
        rows: files, a dataset, or images uint8 [N, H, W, C].
        column: the dataset's column of images.
        split: the source's name of this split.
    """

    def __init__(
        self, rows: datasets.Dataset | ImageFiles | UInt8Array, column: str = "image", *, split: str = "train"
    ) -> None:
        self._rows = rows
        self._column = column
        self.split = split
        """The source's name of this split."""

    @property
    def names(self) -> Sequence[str] | None:
        """The paths of the images from the source's folder; None if it is not a folder of images."""
        return self._rows.names if isinstance(self._rows, ImageFiles) else None

    @property
    def features(self) -> Mapping[str, Any]:
        """The columns of a dataset except that of images, with their types; empty for other sources."""
        if isinstance(self._rows, ImageFiles | np.ndarray):
            return {}
        return {name: feature for name, feature in self._rows.features.items() if name != self._column}

    def values(self, column: str) -> Sequence[Any]:
        """A column of a dataset: one of `features`. No image is read for it."""
        rows: Any = self._rows
        return list(rows.select_columns([column])[column])

    def key(self, index: int) -> str:
        """What the image is called in its source, as long as that only grows: its path, or its split and index."""
        return f"{self.split}/{index}" if self.names is None else self.names[index]

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

    def open(self, index: int) -> Image.Image:
        """The same image, to be closed: of a file only the header has been read, and the pixels are on access."""
        if isinstance(self._rows, ImageFiles):
            with suppress(Exception):  # access says why it cannot be read
                return Image.open(self._cell(index)["path"], formats=FILE_FORMATS)
        return self[index]

    def name(self, index: int) -> str:
        """How messages name an image: by its file, else by its index."""
        file = None if isinstance(self._rows, np.ndarray) else self._cell(index).get("path")
        return f"image {index if file is None else printable(file)}"

    def _bytes(self, index: int) -> bytes:
        cell = self._cell(index)
        if cell.get("bytes") is not None:
            return bytes(cell["bytes"])
        if cell.get("path") is None:
            raise InvalidImageError("the row has no image")
        return Path(cell["path"]).read_bytes()

    def _cell(self, index: int) -> dict[str, Any]:
        return self._rows[index][self._column] or {}
