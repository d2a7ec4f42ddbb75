"""The control groups of this process, by which a container's limits are set: Linux, cgroups(7), versions 1 and 2."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath


def folders(controller: str, root: Path = Path("/")) -> list[Path]:
    """The folders of this process's groups that may have a limit, and of all groups around them; [] without groups.

    Args:
        controller: what is limited, "cpu" or "memory".
        root: the folder that has /proc and the mounted groups.
    """
    with suppress(OSError, ValueError):
        groups = (root / "proc/self/cgroup").read_text().splitlines()
        mounts = (root / "proc/self/mountinfo").read_text().splitlines()
        return list(_folders(controller, groups, mounts, root))
    return []


def _folders(controller: str, groups: list[str], mounts: list[str], root: Path) -> Iterator[Path]:
    """The same, of what the system says.

    Args:
        controller: see `folders`.
        groups: lines ID:CONTROLLERS:PATH; version 2 has no controllers.
        mounts: lines ID PARENT DEVICE ROOT FOLDER OPTIONS... - TYPE SOURCE OPTIONS.
        root: see `folders`.
    """
    paths = {}
    for line in groups:
        _, controllers, path = line.split(":", 2)
        if not controllers or controller in controllers.split(","):
            paths["cgroup" if controllers else "cgroup2"] = PurePosixPath(path)
    for line in mounts:
        mount, _, system = line.partition(" - ")
        _, _, _, mounted, folder, *_ = mount.split()
        kind, *_, options = system.split()
        if kind not in paths or (kind == "cgroup" and controller not in options.split(",")):
            continue
        top = root / folder.lstrip("/")
        # A container may see its own group alone, as the top one, and still be told the path that the host sees.
        inner = paths[kind].relative_to(mounted) if paths[kind].is_relative_to(mounted) else PurePosixPath()
        yield from (top / part for part in (inner, *inner.parents))
