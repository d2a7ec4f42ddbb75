"""How long batches take: the measure of whether a deadline can be met."""

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

    def add(self, rows: int, seconds: float) -> None:
        """Adds a batch that has run."""
        weight = _NEWEST if self.batch_seconds else 1.0
        self.row_seconds += weight * (seconds / rows - self.row_seconds)
        self.batch_seconds += weight * (seconds - self.batch_seconds)

    def seconds(self, rows: int, max_batch_size: int) -> float:
        """The least time that rows take, one batch after another; 0 if no batch has run.

        The time per row is an overestimate after small batches, the time per batch after full ones. The smaller counts.
        """
        return min(rows * self.row_seconds, math.ceil(rows / max_batch_size) * self.batch_seconds)
