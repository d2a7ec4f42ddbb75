"""How long batches take: whether a deadline can be met, how many rows it can bear, and what a row costs."""

from __future__ import annotations

import math
from dataclasses import dataclass

# The weight of the newest batch in the averages.
_NEWEST = 0.2


@dataclass
class Pace:
    """Exponential averages of the time per row and per batch; 0 until a batch has run."""

    row_seconds: float = 0.0
    batch_seconds: float = 0.0
    own_row_seconds: float = 0.0
    """The processor time per row of the thread that ran the batch."""

    def add(self, rows: int, seconds: float, own_seconds: float) -> None:
        """Adds a batch that has run on one core."""
        weight = _NEWEST if self.batch_seconds else 1.0
        self.row_seconds += weight * (seconds / rows - self.row_seconds)
        self.batch_seconds += weight * (seconds - self.batch_seconds)
        self.own_row_seconds += weight * (own_seconds / rows - self.own_row_seconds)

    def seconds(self, rows: int, max_batch_size: int) -> float:
        """The least time that rows take, one batch after another; 0 if no batch has run.

        The time per row is an overestimate after small batches, the time per batch after full ones. The smaller counts.
        """
        return min(rows * self.row_seconds, math.ceil(rows / max_batch_size) * self.batch_seconds)

    def rows_within(self, seconds: float, max_batch_size: int) -> int:
        """How many rows make a batch that surely takes no longer; one at least, and all if no batch has run."""
        if seconds >= max_batch_size * self.row_seconds:
            return max_batch_size
        return max(1, int(seconds / self.row_seconds))
