"""Columns of labels, whatever their source: each image has one of a column's classes, or none.

Shapes: N images of a split.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from glowserve_training.data.source_images import SourceImages
from glowserve_training.errors import DataError

Codes = npt.NDArray[np.int64]

UNLABELLED = -1
"""The code of an image without a label."""
MOST_CLASSES = 1000

# Of a column of yes and no, however it is written; the second means yes.
_YES_AND_NO = ({"0", "1"}, {"-1", "1"}, {"false", "true"}, {"no", "yes"})
_YES = frozenset(("1", "true", "yes"))
_MOST_SHOWN = 5


@dataclass(frozen=True)
class LabelColumn:
    """A column of labels."""

    name: str
    """The column's; "" of a folder with a folder for each class."""

    classes: tuple[str, ...]
    """The names of the classes, in the order of their codes."""

    codes: Mapping[SourceImages, Codes]
    """The class of each image of a split, [N]; UNLABELLED if it has none."""

    @property
    def yes(self) -> int | None:
        """The code that means yes, if the classes are yes and no: 0 and 1, -1 and 1, false and true, no and yes."""
        words = [name.lower() for name in self.classes]
        if set(words) not in _YES_AND_NO:
            return None
        return next(code for code, word in enumerate(words) if word in _YES)


def column_of(
    name: str, values: Mapping[SourceImages, Sequence[Any]], classes: Sequence[str] | None = None
) -> LabelColumn:
    """A column of labels.

    Args:
        name: the column's.
        values: of each split: for each image a string, an integer or a bool; None or "" if it has no label.
        classes: the names of the classes, if the values are their codes, where -1 is no label; None if the values are
            the classes themselves.

    Raises:
        DataError: a value is of another type, or there are too many classes.
    """
    if classes is None:
        values = {images: [_text(name, value) for value in some] for images, some in values.items()}
        found = {text for some in values.values() for text in some if text}
        classes = sorted(found, key=_order)
        numbers: Mapping[Any, int] = {text: code for code, text in enumerate(classes)}
    else:
        numbers = {code: code for code in range(len(classes))}
    if not 2 <= len(classes) <= MOST_CLASSES:
        shown = ", ".join(classes[:_MOST_SHOWN]) + (", ..." if len(classes) > _MOST_SHOWN else "")
        raise DataError(
            f"labels {name!r} have {len(classes)} classes ({shown}); they must have 2 to {MOST_CLASSES}"
        )
    codes = {
        images: np.array([numbers.get(value, UNLABELLED) for value in some], np.int64)
        for images, some in values.items()
    }
    return LabelColumn(name, tuple(classes), codes)


def _text(name: str, value: Any) -> str:
    """A value as the name of its class; "" if it is none."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, bool | np.bool_ | int | np.integer):
        return str(int(value))
    raise DataError(
        f"labels {name!r} have the value {value!r:.100}, of type {type(value).__name__}; labels are 0 and 1, other "
        "integers, or words"
    )


def _order(text: str) -> tuple[int, int, str]:
    """Integers in their order, then words."""
    is_number = text.removeprefix("-").isdecimal() and len(text) < 20
    return (0, int(text), text) if is_number else (1, 0, text)
