"""How many cores a process may use: by its affinity, and by the quotas of control groups of versions 1 and 2."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

import pytest
from glowserve_service.config import ServiceConfig

from glowserve import cores
from glowserve.cores import quota

V1 = "32 31 0:29 {root} /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct"
V2 = "41 31 0:38 {root} /sys/fs/cgroup rw,relatime shared:9 - cgroup2 cgroup2 rw,nsdelegate"
OTHER = "22 1 8:1 / / rw - ext4 /dev/vda rw\n30 22 0:27 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n"


def system(root: Path, groups: str, mounts: str, **files: str) -> Path:
    """A folder with the files of the system; those of `files` are below /sys/fs/cgroup, `/` written as `__`."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(groups)
    (root / "proc/self/mountinfo").write_text(OTHER + mounts)
    for name, content in files.items():
        path = root / "sys/fs/cgroup" / name.replace("__", "/").replace("cpu_", "cpu.")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


@pytest.mark.parametrize(
    ("groups", "mount", "files", "expected"),
    [
        ("0::/", V2.format(root="/"), {"cpu_max": "150000 100000\n"}, 1.5),
        ("0::/", V2.format(root="/"), {"cpu_max": "max 100000\n"}, math.inf),
        ("0::/", V2.format(root="/"), {}, math.inf),
        ("0::/pod/box", V2.format(root="/"), {"pod__box__cpu_max": "max 100000", "pod__cpu_max": "2 1"}, 2),
        ("0::/pod/box", V2.format(root="/"), {"pod__box__cpu_max": "1 2", "pod__cpu_max": "2 1"}, 0.5),
        ("0::/pod/box", V2.format(root="/pod/box"), {"cpu_max": "300000 100000"}, 3),
        ("0::/pod/box/in", V2.format(root="/pod/box"), {"in__cpu_max": "max 1", "cpu_max": "3 1"}, 3),
        ("0::/../other", V2.format(root="/"), {"cpu_max": "2 1"}, 2),
        ("0::/unseen", V2.format(root="/pod"), {"cpu_max": "2 1"}, 2),
        ("0::/", V2.format(root="/"), {"cpu_max": "nonsense"}, math.inf),
        ("0::/", V2.format(root="/"), {"cpu_max": "100000 0"}, math.inf),
        (
            "9:pids:/x\n3:cpu,cpuacct:/pod/box\n0::/",
            V1.format(root="/"),
            {
                "cpu__pod__box__cpu_cfs_quota_us": "-1\n",
                "cpu__pod__box__cpu_cfs_period_us": "100000\n",
                "cpu__pod__cpu_cfs_quota_us": "250000\n",
                "cpu__pod__cpu_cfs_period_us": "100000\n",
            },
            2.5,
        ),
        ("", "", {}, math.inf),
        ("nonsense", "nonsense", {}, math.inf),
    ],
)
def test_the_smallest_quota_of_the_groups_around_a_process_counts(
    tmp_path: Path, groups: str, mount: str, files: dict[str, str], expected: float
) -> None:
    assert quota(system(tmp_path, groups, mount, **files)) == expected


def test_a_system_without_control_groups_has_no_quota(tmp_path: Path) -> None:
    assert quota(tmp_path) == math.inf


@pytest.mark.parametrize(("allowed", "expected"), [(0.2, 1), (1.0, 1), (1.5, 2), (math.inf, None)])
def test_a_share_of_a_core_counts_as_a_core(
    monkeypatch: pytest.MonkeyPatch, allowed: float, expected: int | None
) -> None:
    available = len(os.sched_getaffinity(0))
    monkeypatch.setattr(cores, "quota", lambda: allowed)
    wanted = min(available, expected or available)
    assert cores.cores() == wanted
    assert ServiceConfig(repository=Path()).instances_on("cpu") == wanted


@contextmanager
def group(quota_us: int) -> Iterator[Path]:
    """A control group of this machine with a quota, and a group in it, whose folder is yielded."""
    top = Path("/sys/fs/cgroup/cpu" if Path("/sys/fs/cgroup/cpu").is_dir() else "/sys/fs/cgroup")
    outer = top / f"glowserve-{uuid4().hex}"
    try:
        outer.mkdir()
        (outer / "inner").mkdir()
        if (outer / "cpu.max").exists():
            (outer / "cpu.max").write_text(f"{quota_us} 100000")
        else:
            (outer / "cpu.cfs_quota_us").write_text(str(quota_us))
    except OSError as error:
        with suppress(OSError):
            (outer / "inner").rmdir()
            outer.rmdir()
        pytest.skip(f"control groups cannot be made here: {error}")
    try:
        yield outer / "inner"
    finally:
        (outer / "inner").rmdir()
        outer.rmdir()


def test_a_process_in_a_real_group_sees_the_quota_around_it() -> None:
    program = (
        "import os, sys, pathlib; pathlib.Path(sys.argv[1], 'cgroup.procs').write_text(str(os.getpid()));"
        "from glowserve.cores import cores, quota; print(quota(), cores())"
    )
    with group(50_000) as folder:
        command = [sys.executable, "-c", program, str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.split() == ["0.5", "1"]


def test_a_process_bound_to_one_core_has_one() -> None:
    core = min(os.sched_getaffinity(0))
    program = (
        f"import os; os.sched_setaffinity(0, [{core}]); from glowserve.cores import cores; print(cores())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.split() == ["1"]
