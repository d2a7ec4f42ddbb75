"""The disk fills up while a version is copied to the repository: the version before it stays in service."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.soak.background_load import closed_load
from tests.soak.conftest import MakeVersion, Serve
from tests.soak.known_answers import KnownAnswers
from tests.soak.listing import list_models, until_refused, until_served
from tests.soak.report import print_table

CALLERS = 32


@pytest.fixture
def small_disk(tmp_path: Path, repository: Path) -> Iterator[Path]:
    """A disk with room for one and a half bundles of the digits."""
    bundle = sum(path.stat().st_size for path in (repository / "digits" / "1").iterdir())
    folder = tmp_path / "disk"
    folder.mkdir()
    with mounted(folder, f"{bundle * 3 // 2 // 4096 * 4}k"):
        yield folder


@contextmanager
def mounted(folder: Path, size: str) -> Iterator[None]:
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("no small disk can be mounted here; mounting takes root")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


async def test_a_version_whose_copy_fills_the_disk_is_refused_and_the_one_before_it_stays_served(
    serve: Serve, small_disk: Path, repository: Path, known: KnownAnswers, make_version: MakeVersion
) -> None:
    folder, new = small_disk / "digits", make_version(2)
    shutil.copytree(repository / "digits" / "1", folder / "1")
    versions = {1: known, 2: KnownAnswers.of_version(new, known.images)}
    with serve("--poll-seconds", "0.2", "--canary-seconds", "1", models=small_disk) as service:
        async with closed_load(service.target, versions, callers=CALLERS) as load:
            await load.more(200)
            with pytest.raises((OSError, shutil.Error), match="No space left on device"):
                await asyncio.to_thread(shutil.copytree, new, folder / "2")
            reason = await until_refused(service.target)
            await load.more(200)
            assert (await list_models(service.target)).models[0].model.version == 1
            await make_room_and_copy_again(folder, new)
            await until_served(service.target, 2)
            await load.more(200)
        log = service.log.read_text()
    print_table(
        "The disk fills up while version 2 is copied",
        [("calls, failed", f"{len(load.ended)}, 0"), ("what ListModels says of version 2", reason)],
    )
    assert "Traceback" not in log


async def make_room_and_copy_again(folder: Path, version: Path) -> None:
    """Version 1 is in memory, and does not need its files any more."""
    await asyncio.to_thread(shutil.rmtree, folder / "2")
    await asyncio.to_thread(shutil.rmtree, folder / "1")
    await asyncio.to_thread(shutil.copytree, version, folder / "2")
