"""How processor time grows with the amount of work."""

from __future__ import annotations

import time
from collections.abc import Callable


def growth(work: Callable[[int], object], small: int, factor: int) -> float:
    """How many times as long a `factor` times as large amount of work takes: the least of five tries.

    Linear work takes `factor` times as long, and quadratic work `factor` times that. It is the processor time of this
    thread, so that other work of the machine matters little.

    Args:
        work: does an amount of work.
        small: the smaller amount.
        factor: how many times as large the other one is.
    """

    def seconds(amount: int) -> float:
        began = time.thread_time()
        work(amount)
        return time.thread_time() - began

    return min(seconds(factor * small) / seconds(small) for _ in range(5))
