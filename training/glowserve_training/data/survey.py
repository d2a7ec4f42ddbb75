"""A look at some images of a source, spread evenly over it: their sizes, and whether they are grey.

The defaults of a model's shape follow from it, and training says what it found.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from glowserve.cores import cores
from glowserve.image_size import ImageSize
from glowserve.images import BITS_USED, InvalidImageError, grey_range
from glowserve_training.config import DataConfig
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
# Less of a picture's pixels left than this is worth a word.
_MUCH = 0.5
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

    brightest: int | None
    """The largest value of those with 16 bits of grey, of which some are decoded; None if there are none."""

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

    def remarks(self, config: DataConfig) -> Iterator[str]:
        """What a user might not expect of a model with these images."""
        coloured, channels = self.images - self.grey, config.channels
        if channels <= 2 and coloured and not self.looks_grey:
            yield f"{coloured} of {self.images} images lose their colours; --channels {channels + 2} keeps them"
        if channels >= 3 and coloured and self.looks_grey:
            yield (
                f"the images are stored in colour and show none: --channels {channels - 2} makes a smaller, faster and "
                "better model"
            )
        size = config.image_size
        if smaller := sum(_is_enlarged(each, config) for each in self.sizes):
            yield f"{smaller} of {self.images} images are smaller than {size} and are enlarged"
        if config.preparation.fit == "crop" and (
            cut := sum(_kept(each, size) < _MUCH for each in self.sizes)
        ):
            yield (
                f"{cut} of {self.images} images lose more than half of their pixels, since {size} is cropped out of "
                "their middle: --fit pad keeps all of a picture, --image-size gives other proportions"
            )
        if self.brightest is not None:
            used = min(bits for bits in BITS_USED if self.brightest < 2**bits)
            if used < config.preparation.bits_used:
                yield (
                    f"the upper bits of the 16-bit images are unused, the largest value found is {self.brightest}: "
                    f"--bits-used {used} makes them as bright as they are meant, if all of them have {used} bits"
                )


def _is_enlarged(image: ImageSize, config: DataConfig) -> bool:
    wanted = config.image_size
    smaller = (image.height < wanted.height, image.width < wanted.width)
    return all(smaller) if config.preparation.fit == "pad" else any(smaller)


def _kept(image: ImageSize, wanted: ImageSize) -> float:
    """The share of its pixels that a picture keeps when it is cropped."""
    one, other = image.height * wanted.width, image.width * wanted.height
    return min(one, other) / max(one, other)


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

    def look(index: int) -> tuple[ImageSize, str] | InvalidImageError:
        try:
            with images.open(index) as image:
                return ImageSize(image.height, image.width), image.mode
        except InvalidImageError as error:
            return error

    unreadable = UnreadableImages()
    sizes: list[ImageSize] = []
    coloured, deep = list[int](), list[int]()
    with ThreadPoolExecutor(cores()) as pool:
        for index, found in zip(indices, pool.map(look, indices), strict=True):
            if isinstance(found, InvalidImageError):
                unreadable.add(images.name(index), found)
                continue
            size, mode = found
            sizes.append(size)
            coloured += [] if _is_stored_grey(mode) else [index]
            deep += [index] if _is_deep(mode) else []
    if not sizes:
        raise DataError(
            f"none of {len(indices)} images can be read: {unreadable}; repair them, or remove them"
        )
    return Survey(
        images=len(sizes),
        all_images=len(images),
        sizes=sorted(sizes, key=lambda size: (size.shorter, size.longer, size.width)),
        grey=len(sizes) - len(coloured),
        brightest=_brightest(images, deep[:_MOST_DECODED]),
        looks_grey=bool(coloured) and all(_looks_grey(images, index) for index in coloured[:_MOST_DECODED]),
    )


def _is_stored_grey(mode: str) -> bool:
    return mode in ("1", "L", "LA", "La", "F") or _is_deep(mode)


def _is_deep(mode: str) -> bool:
    """Whether grey values have 16 bits."""
    return mode == "I" or mode.startswith("I;16")


def _brightest(images: SourceImages, deep: Sequence[int]) -> int | None:
    """The largest value of images with 16 bits of grey; None if none can be read, or one has more bits."""
    most: list[int] = []
    for index in deep:
        with suppress(Exception), images.open(index) as image:  # see glowserve.images.open_encoded
            if image.width * image.height <= _MOST_PIXELS:
                most.append(grey_range(image)[1])
    return max(most) if most and max(most) < 2**16 else None


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
