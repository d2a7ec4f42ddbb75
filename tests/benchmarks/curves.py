"""Tables of how a cost grows, with the exponent of each column beside that of the work."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Column:
    """A cost that is measured."""

    name: str
    """With its unit."""

    work: float
    """The exponent of the work: a cost with a larger one grows faster than its work."""


@dataclass
class Table:
    """The costs at several amounts of work."""

    name: str
    amount: str
    """What the amounts count: the heading of the first column."""
    columns: Sequence[Column]
    note: str
    """What was measured, in a sentence or two."""
    rows: dict[int, Sequence[float]] = field(default_factory=dict)
    """By amount, ascending: a value for each column."""

    def print(self) -> None:
        """Prints the table in Markdown."""
        amounts, values = list(self.rows), list(zip(*self.rows.values(), strict=True))
        print(f"### {self.name}\n\n{self.note}\n")
        self._print_row(self.amount, [column.name for column in self.columns])
        print("|---" + "|---:" * len(self.columns) + "|")
        for amount, costs in self.rows.items():
            self._print_row(f"{amount:,}", map(_short, costs))
        self._print_row("exponent", [f"{exponent(amounts, costs):.2f}" for costs in values])
        self._print_row("exponent of the work", [f"{column.work:g}" for column in self.columns])
        print(flush=True)

    @staticmethod
    def _print_row(first: str, cells: Sequence[str] | map[str]) -> None:
        print(f"| {first} | {' | '.join(cells)} |")


def exponent(amounts: Sequence[float], costs: Sequence[float]) -> float:
    """The p of costs that grow like amount^p in the upper half of the amounts: the slope of their logarithms.

    In the lower half, what does not grow hides what does.

    Args:
        amounts: at least 2, ascending, more than 0.
        costs: one for each amount.

    Returns:
        The exponent; NaN if a cost is not more than 0.
    """
    half = len(amounts) // 2 + 1
    if min(costs[-half:]) <= 0:
        return math.nan
    return float(np.polyfit(np.log(amounts[-half:]), np.log(costs[-half:]), 1)[0])


def _short(value: float) -> str:
    """Three digits, and no fraction from 100 on."""
    digits = 2 - math.floor(math.log10(abs(value))) if value else 0
    return f"{value:,.{max(0, min(3, digits))}f}"
