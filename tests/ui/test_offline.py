"""The pages need no network but the machine's own: everything that they load is theirs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from glowserve.images import UInt8Array, encode_png
from tests.ui.conftest import chromium

PROGRAM = Path(__file__).parent / "programs" / "offline.py"
UNSHARE = ["unshare", "--map-root-user", "--net"]


def test_every_page_works_in_a_network_namespace_without_a_network(
    attributed_repository: Path, digits: UInt8Array, tmp_path: Path
) -> None:
    browser = chromium()
    if not shutil.which("unshare") or subprocess.run([*UNSHARE, "true"], check=False).returncode:
        pytest.skip("no permission to make a network namespace: run as root, or permit user namespaces")
    picture = tmp_path / "digit.png"
    picture.write_bytes(encode_png(digits[1]))
    path = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [*UNSHARE, sys.executable, str(PROGRAM), str(attributed_repository), browser, str(picture)],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "interfaces": ["lo"],
        "said": [
            "0 of 1 picture is anomalous",
            "16 images at temperature 0.7, seed 0",
            "8 images from digit.png to digit.png",
            "digit.png along bright, strengths -2 to 2",
        ],
        "elsewhere": [],
        "failed": [],
    }
