"""How much memory a process may use, by the limits of control groups of versions 1 and 2."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from glowserve_service import config as config_module
from glowserve_service.config import ServiceConfig

from glowserve.memory import memory_limit

V1 = "32 31 0:29 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory"
V2 = "41 31 0:38 / /sys/fs/cgroup rw,relatime shared:9 - cgroup2 cgroup2 rw,nsdelegate"


@pytest.mark.parametrize(
    ("groups", "mount", "files", "expected"),
    [
        ("0::/", V2, {"memory.max": "536870912\n"}, 2**29),
        ("0::/", V2, {"memory.max": "max\n"}, math.inf),
        ("0::/pod/box", V2, {"pod/box/memory.max": "max", "pod/memory.max": "1024"}, 1024),
        ("5:memory:/box", V1, {"memory/box/memory.limit_in_bytes": "4096\n"}, 4096),
        ("5:cpu:/box", V1, {"memory/box/memory.limit_in_bytes": "4096\n"}, math.inf),
        ("0::/", V2, {}, math.inf),
        ("", "", {}, math.inf),
    ],
)
def test_the_smallest_limit_of_the_groups_around_a_process_counts(
    tmp_path: Path, groups: str, mount: str, files: dict[str, str], expected: float
) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(groups)
    (tmp_path / "proc/self/mountinfo").write_text(mount)
    for name, content in files.items():
        path = tmp_path / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    assert memory_limit(tmp_path) == expected


@pytest.mark.parametrize(
    ("limit", "most", "longest"),
    [(math.inf, 1024, 64), (2**30, 192, 64), (2**29, 64, 32), (2**27, 8, 8)],
)
def test_a_container_bounds_requests_and_one_of_the_largest_always_fits(
    monkeypatch: pytest.MonkeyPatch, limit: float, most: int, longest: int
) -> None:
    monkeypatch.setattr(config_module, "memory_limit", lambda: limit)
    config = ServiceConfig(repository=Path())
    assert (config.max_received_bytes, config.max_message_bytes) == (most * 2**20, longest * 2**20)
