"""A repository as Kubernetes mounts one: links through `..data`, which is replaced at once, and no right to write."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.service.models.running import POLL, RunService
from tests.service.stubs import SERVING
from tests.service.wire import wait_for


def mount(source: Path, volume: Path, name: str) -> None:
    """Publishes a repository's new state: a folder of its own, and one rename that makes it the current one."""
    shutil.copytree(source, volume / name)
    for folder in (volume / name).rglob("*"):
        folder.chmod(0o555 if folder.is_dir() else 0o440)
    (volume / "..data_tmp").symlink_to(name)
    (volume / "..data_tmp").rename(volume / "..data")


def test_links_to_a_folder_that_is_replaced_load_and_reload(
    run_service: RunService, repository: Path, second: Path, tmp_path: Path
) -> None:
    volume = tmp_path / "volume"
    volume.mkdir()
    mount(repository, volume, "..2026_01_01")
    (volume / "digits").symlink_to("..data/digits")
    with run_service(repository=volume, **POLL) as service:
        assert service.served() == [("digits", 1)]
        mount(second.parents[1], volume, "..2026_01_02")
        wait_for(lambda: service.served() == [("digits", 2)])
        assert service.status() == SERVING
        assert service.answering_version() == 2
