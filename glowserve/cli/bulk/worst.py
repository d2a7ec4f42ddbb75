"""The pictures that belong least, and a sheet that shows them."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from glowserve.cli.bulk.rows import Row, Value
from glowserve.cli.picture_tables import read_picture
from glowserve.files import atomic_write
from glowserve.images import (
    InvalidImageError,
    Preparation,
    UInt8Array,
    open_encoded,
    prepare,
    to_pil,
)
from glowserve.scores import TABLE

MOST = 1000
"""The most pictures of a sheet."""

# The scores that order pictures, of which the last is in every file.
_RANKING = ("anomaly_p_value", "bits_per_dim")
# Pixels of a sheet.
_SIDE, _MARGIN, _CAPTION, _COLUMNS = 128, 8, 16, 10


class Ranked(NamedTuple):
    """A picture with the score that it is ordered by."""

    path: str
    score: Value


def ranking(columns: Sequence[str]) -> list[str]:
    """The scores that order pictures: the anomaly's p-value, of which small ones have many equals, then bits/dim."""
    return [name for name in _RANKING if name in columns]


def worst_of(rows: Iterable[Row], columns: Sequence[str], n: int) -> list[Ranked]:
    """The n pictures with the oddest scores, oddest first; fewer if fewer have scores."""
    by = [(columns.index(name), TABLE[name].odd == "low") for name in ranking(columns)]

    def oddness(row: Row) -> list[float]:
        values = row.values or []
        return [_oddness(values[column], low) for column, low in by]

    oddest = heapq.nsmallest(n, (row for row in rows if row.values is not None), oddness)
    return [Ranked(row.path, (row.values or [])[by[0][0]]) for row in oddest]


def _oddness(score: Value, low_is_odd: bool) -> float:
    """Ascends from the oddest. A score that is missing, or no number, is the oddest."""
    if score is None or isinstance(score, list) or math.isnan(score):
        return -math.inf
    return score if low_is_odd else -score


def as_json(picture: Ranked) -> dict[str, Any]:
    """A picture for JSON, which has no infinity."""
    score = picture.score
    return {
        "file": picture.path,
        "score": score if isinstance(score, float) and math.isfinite(score) else None,
    }


def shown(score: Value) -> str:
    """A score as people read it."""
    return f"{score:.4g}" if isinstance(score, float) else "unknown"


def draw_sheet(pictures: Sequence[Ranked], path: Path, bits_used: int) -> None:
    """Draws pictures row by row, each above its rank and its score. One that cannot be read any more stays grey.

    Args:
        pictures: the pictures.
        path: of the sheet, a PNG file.
        bits_used: of 16-bit grey, as the model has it; see `Preparation`.
    """
    columns = min(len(pictures), _COLUMNS) or 1
    rows = -(-len(pictures) // columns)
    width, height = _SIDE + _MARGIN, _SIDE + _CAPTION + _MARGIN
    sheet = Image.new("RGB", (columns * width + _MARGIN, rows * height + _MARGIN), (232, 232, 232))
    draw = ImageDraw.Draw(sheet)
    for i, picture in enumerate(pictures):
        left, top = _MARGIN + i % columns * width, _MARGIN + i // columns * height
        sheet.paste(to_pil(_thumbnail(picture.path, bits_used)), (left, top))
        draw.text((left, top + _SIDE + 2), f"{i + 1}:  {shown(picture.score)}", fill="black")
    with atomic_write(path) as file:
        sheet.save(file, "PNG")


def _thumbnail(path: str, bits_used: int) -> UInt8Array:
    """The middle of a picture, [_SIDE, _SIDE, 3]."""
    try:
        with open_encoded(read_picture(path)) as picture:
            small = max(picture.size) <= _SIDE
            rule = Preparation("nearest" if small else "bicubic", bits_used=bits_used)
            return prepare(picture, _SIDE, _SIDE, 3, rule)
    except (InvalidImageError, OSError):
        return np.full((_SIDE, _SIDE, 3), 192, np.uint8)
