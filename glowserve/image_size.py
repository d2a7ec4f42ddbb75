"""The height and the width of a model's images, or of one of its levels."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

MAX_SIDE = 16_383
"""The most rows, and columns, of a model's images: the complexity of an image is the size of a WebP file."""

MAX_VALUES = 2**22
"""The most values H * W * C of a model's image: 1024 x 1024 in colour, and some."""

_TEXT = re.compile(r"([0-9]{1,9})(?: ?x ?([0-9]{1,9}))?")


@dataclass(frozen=True)
class ImageSize:
    """H and W."""

    height: int
    """H, rows of pixels."""

    width: int
    """W, columns of pixels."""

    @classmethod
    def of(cls, given: ImageSize | int | str | Sequence[int]) -> ImageSize:
        """The size that a number stands for, of a square, or HEIGHTxWIDTH, or [height, width].

        Raises:
            ValueError: it is none of these.
        """
        if isinstance(given, ImageSize):
            return given
        if isinstance(given, str):
            if (match := _TEXT.fullmatch(given)) is None:
                raise ValueError(
                    f"{given!r} is no image size; give HEIGHTxWIDTH, as in 48x160, or one number"
                )
            height, width = match.groups()
            return cls(int(height), int(width or height))
        sides = (
            (given, given) if type(given) is int else tuple(given) if isinstance(given, list | tuple) else ()
        )
        if len(sides) != 2 or any(type(side) is not int for side in sides):
            raise ValueError(f"{given!r} is no image size; it must be a number or [height, width]")
        return cls(*sides)

    @property
    def stored(self) -> int | list[int]:
        """As files hold it: a number if it is square, as of old, else [height, width]."""
        return self.height if self.height == self.width else [self.height, self.width]

    @property
    def pixels(self) -> int:
        """H * W."""
        return self.height * self.width

    @property
    def shorter(self) -> int:
        """The shorter side."""
        return min(self.height, self.width)

    @property
    def longer(self) -> int:
        """The longer side."""
        return max(self.height, self.width)

    def halved(self, times: int = 1) -> ImageSize:
        """The size after so many squeezes."""
        return ImageSize(self.height >> times, self.width >> times)

    @property
    def halvings(self) -> int:
        """How often both sides can be halved without a remainder."""
        both = self.height | self.width
        return (both & -both).bit_length() - 1

    def nearest(self, multiple: int) -> list[ImageSize]:
        """The next smaller and the next larger size whose sides are positive multiples; one, if this is such a size."""
        smaller, larger = (
            ImageSize(*(max(1, (side + up) // multiple) * multiple for side in (self.height, self.width)))
            for up in (0, multiple - 1)
        )
        return [smaller] if smaller == larger else [smaller, larger]

    def __str__(self) -> str:
        return f"{self.height} x {self.width}"
