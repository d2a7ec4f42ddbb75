"""How many CPU cores this process may use: what `taskset` leaves it, and the quotas of its control groups.

A container's CPU limit is such a quota: Linux, cgroups(7). The system counts all cores of the machine nevertheless,
and a process with a thread for each of them is stopped for most of each period.
"""

from __future__ import annotations

import math
import os
from contextlib import suppress
from pathlib import Path

from glowserve.control_groups import folders


def cores() -> int:
    """How many cores this process may use, at least 1. A quota of two and a half counts as three."""
    everywhere = os.cpu_count() or 1
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else everywhere
    return max(1, math.ceil(min(available, quota())))


def quota(root: Path = Path("/")) -> float:
    """The smallest quota of this process's control groups and of those around them, in cores; infinity without one.

    Args:
        root: the folder that has /proc and the mounted groups.
    """
    return min((_quota(folder) for folder in folders("cpu", root)), default=math.inf)


def _quota(folder: Path) -> float:
    """The quota of a group in cores; infinity without one."""
    with suppress(OSError, ValueError, ZeroDivisionError):
        if (both := folder / "cpu.max").exists():
            allowed, period = both.read_text().split()
        else:
            allowed = (folder / "cpu.cfs_quota_us").read_text()
            period = (folder / "cpu.cfs_period_us").read_text()
        # "max" is no number, and -1 no quota.
        return float(allowed) / float(period) if float(allowed) > 0 else math.inf
    return math.inf
