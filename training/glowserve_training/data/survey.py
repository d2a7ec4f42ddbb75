"""A look at some images of a source, spread evenly over it: their sizes, and whether they are grey.

The defaults of a model's shape follow from it, and training says what it found.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from glowserve.cores import cores
from glowserve.image_size import ImageSize
from glowserve.images import InvalidImageError
from glowserve_training.data.source_images import SourceImages
from glowserve_training.data.splits import spread_evenly
from glowserve_training.data.unreadable import UnreadableImages
from glowserve_training.errors import DataError

# Enough that a kind of image that makes up a fiftieth of the source is hardly missed.
_MOST_LOOKED_AT = 256
# Images, and pixels of each, that are decoded to find images that are grey though stored in colour.
_MOST_DECODED = 32
_MOST_PIXELS = 2**24
# A grey image takes a third of the values, but makes colours grey for good: a model is grey if so many images are.
_GREY_SHARE = 0.9
# JPEG shifts the channels of a grey image by this much at most.
_GREY_TOLERANCE = 3


@dataclass(frozen=True)
class Survey:
    """What was found."""

    images: int
    """How many were looked at and could be read."""

    all_images: int
    """How many the source has."""

    sizes: list[ImageSize]
    """Of the images that were looked at, ordered by their shorter side."""

    grey: int
    """How many of them are stored in grey."""

    looks_grey: bool
    """Whether the others are stored in colour, but show none."""

    @property
    def side(self) -> int:
        """The median of the shorter sides."""
        return self.sizes[(len(self.sizes) - 1) // 2].shorter

    @property
    def channels(self) -> int:
        """1 if at least nine in ten are stored in grey, else 3."""
        return 1 if self.grey >= _GREY_SHARE * self.images else 3

    def __str__(self) -> str:
        smallest, largest = str(self.sizes[0]), str(self.sizes[-1])
        sizes = smallest if smallest == largest else f"{smallest} to {largest}"
        some = f"; {self.images} were looked at" if self.all_images > _MOST_LOOKED_AT else ""
        return f"{sizes} pixels, {self._colours()}{some}"

    def _colours(self) -> str:
        if self.grey in (0, self.images):
            return "all grey" if self.grey else "all in colour"
        return f"{self.images - self.grey} in colour and {self.grey} grey"

    def remarks(self, image_size: ImageSize, channels: int) -> Iterator[str]:
        """What a user might not expect of a model with images of this shape."""
        coloured = self.images - self.grey
        if channels == 1 and coloured and not self.looks_grey:
            yield f"{coloured} of {self.images} images lose their colours; --channels 3 keeps them"
        if channels == 3 and coloured and self.looks_grey:
            yield "the images are stored in colour and show none: --channels 1 makes a smaller, faster and better model"
        if smaller := sum(
            size.height < image_size.height or size.width < image_size.width for size in self.sizes
        ):
            yield f"{smaller} of {self.images} images are smaller than {image_size} and are enlarged"


def survey_images(images: SourceImages, only: npt.NDArray[np.int64] | None = None) -> Survey:
    """Looks at the headers of no more than 256 images, the same ones each time.

    Args:
        images: of a source.
        only: the indices of those that may be looked at; None for all.

    Raises:
        DataError: none of them can be read.
    """
    allowed = np.arange(len(images)) if only is None else only
    indices = spread_evenly((images, allowed), _MOST_LOOKED_AT)

    def look(index: int) -> tuple[ImageSize, bool] | InvalidImageError:
        try:
            with images.open(index) as image:
                return ImageSize(image.height, image.width), _is_stored_grey(image)
        except InvalidImageError as error:
            return error

    unreadable = UnreadableImages()
    sizes: list[ImageSize] = []
    coloured: list[int] = []
    with ThreadPoolExecutor(cores()) as pool:
        for index, found in zip(indices, pool.map(look, indices), strict=True):
            if isinstance(found, InvalidImageError):
                unreadable.add(images.name(index), found)
                continue
            size, grey = found
            sizes.append(size)
            coloured += [] if grey else [index]
    if not sizes:
        raise DataError(
            f"none of {len(indices)} images can be read: {unreadable}; repair them, or remove them"
        )
    return Survey(
        images=len(sizes),
        all_images=len(images),
        sizes=sorted(sizes, key=lambda size: (size.shorter, size.longer, size.width)),
        grey=len(sizes) - len(coloured),
        looks_grey=bool(coloured) and all(_looks_grey(images, index) for index in coloured[:_MOST_DECODED]),
    )


def _is_stored_grey(image: Image.Image) -> bool:
    return image.mode in ("1", "L", "LA", "La", "I", "F") or image.mode.startswith("I;16")


def _looks_grey(images: SourceImages, index: int) -> bool:
    """Whether the pixels, or those of a smaller version, show no colour; false for a damaged or a very large image."""
    try:
        with images.open(index) as image:
            image.draft("RGB", (64, 64))  # of a JPEG, only as many pixels are decoded
            if image.width * image.height > _MOST_PIXELS:
                return False
            image.thumbnail((64, 64))
            opaque = image.convert("RGBA" if image.has_transparency_data else "RGB")
    except Exception:  # see glowserve.images.open_encoded
        return False
    return int(np.ptp(np.asarray(opaque)[..., :3], axis=2).max()) <= _GREY_TOLERANCE
