"""How many CPU cores this process may use: what `taskset` leaves it, and the quotas of its control groups.

A container's CPU limit is such a quota: Linux, cgroups(7). The system counts all cores of the machine nevertheless,
and a process with a thread for each of them is stopped for most of each period.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath


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
    with suppress(OSError, ValueError):
        groups = (root / "proc/self/cgroup").read_text().splitlines()
        mounts = (root / "proc/self/mountinfo").read_text().splitlines()
        return min((_quota(folder) for folder in _folders(groups, mounts, root)), default=math.inf)
    return math.inf


def _folders(groups: list[str], mounts: list[str], root: Path) -> Iterator[Path]:
    """The folders of this process's groups that may have a quota, and of all groups around them.

    Args:
        groups: lines ID:CONTROLLERS:PATH; version 2 has no controllers.
        mounts: lines ID PARENT DEVICE ROOT FOLDER OPTIONS... - TYPE SOURCE OPTIONS.
        root: see `quota`.
    """
    paths = {}
    for line in groups:
        _, controllers, path = line.split(":", 2)
        if not controllers or "cpu" in controllers.split(","):
            paths["cgroup" if controllers else "cgroup2"] = PurePosixPath(path)
    for line in mounts:
        mount, _, system = line.partition(" - ")
        _, _, _, mounted, folder, *_ = mount.split()
        kind, *_, options = system.split()
        if kind not in paths or (kind == "cgroup" and "cpu" not in options.split(",")):
            continue
        top = root / folder.lstrip("/")
        # A container may see its own group alone, as the top one, and still be told the path that the host sees.
        inner = paths[kind].relative_to(mounted) if paths[kind].is_relative_to(mounted) else PurePosixPath()
        yield from (top / part for part in (inner, *inner.parents))


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
