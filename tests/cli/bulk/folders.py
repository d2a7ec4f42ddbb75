"""Folders of good and bad pictures, and what a file of scores says about them."""

from __future__ import annotations

import csv
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from glowserve.images import UInt8Array, encode_png


def save(images: UInt8Array, folder: Path) -> Path:
    """Saves images as 000.png and so on; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(images):
        (folder / f"{i:03}.png").write_bytes(encode_png(image))
    return folder


def spoil(folder: Path) -> dict[str, str]:
    """Adds pictures that cannot be scored; returns how the errors of each begin, by its path in a file of scores."""
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 1), np.uint8)
    (folder / "damaged.png").write_bytes(encode_png(noise)[:-400])
    (folder / "text.png").write_text("no picture")
    (folder / "gone.png").symlink_to("nowhere.png")
    Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.png")).write_bytes(b"")
    return {
        f"{folder}/damaged.png": "INVALID_ARGUMENT: the picture is damaged",
        f"{folder}/text.png": "10 bytes are not a picture",
        f"{folder}/gone.png": "No such file or directory",
        f"{folder}/caf\\xe9.png": "0 bytes are not a picture",
    }


def rows(path: Path) -> dict[str, dict[str, Any]]:
    """The rows of a file of scores by path, each of which it must have once."""
    found = _csv(path) if path.suffix == ".csv" else pq.read_table(path).to_pylist()
    by_path = {row.pop("path"): row for row in found}
    assert len(by_path) == len(found)
    return by_path


def _csv(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8", newline="") as file:
        return [{name: _value(name, text) for name, text in row.items()} for row in csv.DictReader(file)]


def _value(name: str, text: str) -> Any:
    if name in ("path", "error"):
        return text or None
    named = {"": None, "true": True, "false": False, "inf": math.inf, "-inf": -math.inf}
    return named[text] if text in named else float(text)
