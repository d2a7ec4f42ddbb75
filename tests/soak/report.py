"""Prints the figures of a soak test."""

from __future__ import annotations

from collections.abc import Sequence

Rows = Sequence[tuple[str, object]]
"""Names and values."""


def print_table(title: str, rows: Rows) -> None:
    """Prints a name and a value per line."""
    print(f"\n\n{title}")
    for name, value in rows:
        print(f"  {name:<60} {value}")


def mebibytes(*sizes: float) -> str:
    """Sizes in bytes, written in MiB."""
    return ", ".join(f"{size / 2**20:.1f}" for size in sizes)
