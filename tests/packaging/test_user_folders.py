"""The way from pictures to scores in a working folder where the user has packages called `training`, `service`, ...

Neither the user's packages nor ours may hide the other. One tiny training run serves all tests.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from glowserve.images import UInt8Array, encode_png

PROGRAMS = Path(__file__).parent / "programs"
BIN = Path(sys.executable).parent
USER_PACKAGES = ("training", "export", "service", "runtime", "client", "tests")
ENTRY_POINTS = {
    "console script": [str(BIN / "glowserve")],
    "python -m": [sys.executable, "-m", "glowserve"],
}
TRAIN = ["--data", "pictures", "--device", "cpu", "--n-bits", "4", "--levels", "2", "--steps-per-level", "1"]
TRAIN += ["--width", "4", "--steps", "2", "--batch-size", "16"]
PICTURE = "pictures/0.png"


@dataclass(frozen=True)
class UserFolder:
    """A working folder with pictures and with the user's own packages."""

    path: Path

    @property
    def process_options(self) -> dict[str, Any]:
        """Starts a process here. Its import path begins with this folder, as `python -m` has it by itself."""
        return {"cwd": self.path, "env": os.environ | {"PYTHONPATH": str(self.path)}}

    def run(self, *command: str) -> str:
        """The standard output of a command that must succeed."""
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=120, check=False, **self.process_options
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, digits: UInt8Array) -> UserFolder:
    path = tmp_path_factory.mktemp("user")
    for name in USER_PACKAGES:
        (path / name).mkdir()
        (path / name / "__init__.py").write_text("mine = True\n")
    (path / "pictures").mkdir()
    for i, image in enumerate(digits[:60]):
        (path / "pictures" / f"{i}.png").write_bytes(encode_png(image))
    shutil.copy(PROGRAMS / "own_packages.py", path)
    return UserFolder(path)


@pytest.fixture(scope="module")
def checkpoint_path(folder: UserFolder) -> str:
    """Left by `python -m glowserve train`."""
    folder.run(*ENTRY_POINTS["python -m"], "train", "--out", "run", *TRAIN)
    return "run/model.ckpt"


@pytest.fixture(scope="module", params=ENTRY_POINTS)
def entry_point(request: pytest.FixtureRequest) -> list[str]:
    return ENTRY_POINTS[request.param]


@pytest.fixture(scope="module")
def model(folder: UserFolder, checkpoint_path: str, entry_point: list[str]) -> str:
    """REPOSITORY/MODEL with the newest version exported by this entry point."""
    folder.run(*entry_point, "export", checkpoint_path, "models/tiny")
    return "models/tiny"


@pytest.fixture(scope="module")
def server(
    folder: UserFolder,
    model: str,
    entry_point: list[str],
    serve: Callable[..., AbstractContextManager[str]],
) -> Iterator[str]:
    """HOST:PORT of a server that this entry point started in the folder."""
    with serve(entry_point, Path(model).parent, **folder.process_options) as target:
        yield target


def test_a_server_and_a_bundle_score_a_picture_alike(
    folder: UserFolder, model: str, server: str, entry_point: list[str]
) -> None:
    served = json.loads(folder.run(*entry_point, "score", "--server", server, "--json", PICTURE))
    embedded = json.loads(folder.run(*entry_point, "score", "--model", model, "--json", PICTURE))
    assert served["bits_per_dim"] == pytest.approx(embedded["bits_per_dim"], rel=1e-6)


# The script is an entry point of its own.
@pytest.mark.parametrize("entry_point", ["python -m"], indirect=True, scope="module")
@pytest.mark.parametrize("own_packages_first", ["yes", "no"])
def test_a_script_uses_glowserve_and_the_users_packages_in_either_order(
    own_packages_first: str, folder: UserFolder, model: str, server: str
) -> None:
    command = [sys.executable, "own_packages.py", own_packages_first, ",".join(USER_PACKAGES)]
    scores = json.loads(folder.run(*command, model, server, PICTURE))
    assert scores["served"] == pytest.approx(scores["embedded"], rel=1e-6)


def test_the_console_script_finds_the_finished_run(folder: UserFolder, checkpoint_path: str) -> None:
    printed = folder.run(*ENTRY_POINTS["console script"], "train", "--out", "run", *TRAIN)
    assert checkpoint_path in printed


def test_torchrun_trains_with_two_processes(folder: UserFolder) -> None:
    command = [str(BIN / "torchrun"), "--standalone", "--nproc-per-node", "2", "-m", "glowserve", "train"]
    printed = folder.run(*command, "--out", "parallel", "--devices", "2", *TRAIN)
    assert printed.count("parallel/model.ckpt: ") == 1
    assert (folder.path / "parallel" / "model.ckpt").is_file()
