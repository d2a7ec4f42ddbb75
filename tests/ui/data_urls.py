"""Reads data URLs."""

from __future__ import annotations

from base64 import b64decode


def data_of(url: str) -> bytes:
    """The content of a PNG's data URL."""
    assert url.startswith("data:image/png;base64,")
    return b64decode(url.partition(",")[2])
