"""The picture files of one request, decoded together to images.

Imports nothing but NumPy and Pillow: the service decodes them in processes that should start soon and stay small.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from glowserve.file_structure import plain_png_pixels
from glowserve.images import (
    ENCODED_FORMATS,
    MAX_PIXELS,
    InvalidImageError,
    Preparation,
    UInt8Array,
    open_encoded,
    prepare,
)


class InvalidPictureError(InvalidImageError):
    """One of several pictures cannot be decoded.

    Args:
        message: see InvalidImageError.
        index: the index of the picture; None if it is not known which.
    """

    def __init__(self, message: str, index: int | None) -> None:
        super().__init__(message)
        self.index = index


class TooManyPixelsError(InvalidPictureError):
    """The pictures have more pixels than they may have together, up to the one with this index."""


@dataclass(frozen=True)
class Pictures:
    """Picture files, and the images that they become."""

    files: Sequence[bytes]
    """N files, of `ENCODED_FORMATS`."""

    shape: tuple[int, int, int]
    """[H, W, C] of an image."""

    preparation: Preparation
    """How a picture becomes an image."""

    max_pixels: int = MAX_PIXELS
    """The most pixels of all pictures together, before they are resized."""

    @property
    def count(self) -> int:
        """N."""
        return len(self.files)

    def decode(self) -> UInt8Array:
        """The images, uint8 [N, H, W, C].

        Raises:
            InvalidPictureError: a picture cannot be read, is damaged, or is too large.
            MemoryError: there is not enough memory.
        """
        height, width, channels = self.shape
        pixels, images = 0, np.empty((len(self.files), *self.shape), np.uint8)
        for i, data in enumerate(self.files):
            try:
                with open_encoded(data, formats=ENCODED_FORMATS) as picture:
                    pixels += picture.width * picture.height
                    if pixels > self.max_pixels:
                        raise TooManyPixelsError(
                            f"it has {picture.width} x {picture.height} pixels, which makes {pixels} in this call; at "
                            f"most {self.max_pixels} are accepted: make it smaller, or raise the service's "
                            "--max-pixels-per-call",
                            i,
                        )
                    images[i] = prepare(
                        picture, height, width, channels, self.preparation, max_pixels=self.max_pixels
                    )
            except TooManyPixelsError:
                raise
            except InvalidImageError as error:
                raise InvalidPictureError(str(error), i) from None
        return images

    @property
    def plain_pixels(self) -> int | None:
        """The pixels of all pictures together if all are plain PNG files; else None.

        The size in its header says what it takes to decode such a file: it has no metadata, which may be compressed.
        """
        pixels = [plain_png_pixels(data) for data in self.files]
        return None if None in pixels else sum(filter(None, pixels))
