"""How much memory this process may use by the limits of its control groups: a container's limit is one of these."""

from __future__ import annotations

import math
from contextlib import suppress
from functools import cache
from pathlib import Path

from glowserve.control_groups import folders


@cache
def memory_limit(root: Path = Path("/")) -> float:
    """The smallest limit of this process's control groups and of those around them, in bytes; infinity without one.

    Args:
        root: the folder that has /proc and the mounted groups.
    """
    return min((_limit(folder) for folder in folders("memory", root)), default=math.inf)


def _limit(folder: Path) -> float:
    """The limit of a group in bytes; infinity without one. Without one, version 1 has a number near 2**63."""
    for name in ("memory.max", "memory.limit_in_bytes"):
        with suppress(OSError, ValueError):  # "max" is no number
            return float(int((folder / name).read_text()))
    return math.inf
