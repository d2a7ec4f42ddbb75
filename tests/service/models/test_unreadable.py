"""What the service cannot read, and what it ignores, in a repository: the rest is served."""

from __future__ import annotations

import ctypes
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from glowserve.v1 import glow_service_pb2 as pb
from tests.servers import ServerProcess, StartServer, failed_start
from tests.service.log_records import records_of
from tests.service.models.running import ON_REQUEST, RunService, publish
from tests.service.stubs import Stubs, connect
from tests.service.wire import wait_for

PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 24, 1, 2  # linux/prctl.h, linux/capability.h


def obey_permissions() -> None:
    """Makes this process, and what it executes, obey the permissions of files although it is root's."""
    for capability in (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH):
        ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)


@contextmanager
def unreadable(path: Path) -> Iterator[None]:
    path.chmod(0)
    try:
        yield
    finally:
        path.chmod(0o755)


def not_served(stubs: Stubs) -> dict[tuple[str, int], str]:
    listed = stubs.glow.ListModels(pb.ListModelsRequest()).not_served
    return {(each.model.name, each.model.version): each.reason for each in listed}


def served(stubs: Stubs) -> list[tuple[str, int]]:
    listed = stubs.glow.ListModels(pb.ListModelsRequest()).models
    return [(each.model.name, each.model.version) for each in listed]


@contextmanager
def started(start_server: StartServer, models: Path) -> Iterator[tuple[ServerProcess, Stubs]]:
    flags = ("--repository", str(models), "--poll-seconds", "0.1")
    with (
        start_server(*flags, preexec_fn=obey_permissions) as server,
        connect(server.target) as stubs,
    ):
        yield server, stubs


def test_a_model_whose_folder_cannot_be_listed_is_refused_alone(
    start_server: StartServer, models: Path
) -> None:
    shutil.copytree(models / "digits", models / "faces")
    reason = "its folder cannot be listed: Permission denied"
    with unreadable(models / "faces"), started(start_server, models) as (server, stubs):
        assert served(stubs) == [("digits", 1)]
        assert not_served(stubs) == {("faces", 0): reason}
        publish(models / "digits" / "1", models / "digits" / "2")
        wait_for(lambda: served(stubs) == [("digits", 2)])
        (models / "faces").chmod(0o755)
        wait_for(lambda: served(stubs) == [("digits", 2), ("faces", 1)])
        assert not_served(stubs) == {}
        (models / "faces").chmod(0)
        wait_for(lambda: not_served(stubs) == {("faces", 0): reason})
        assert served(stubs) == [("digits", 2), ("faces", 1)]
        log = server.stop()
    assert log.count(f"faces is refused: {reason}") == 2


def test_versions_that_cannot_be_read_are_refused_alone(start_server: StartServer, models: Path) -> None:
    """Each model has a version 2, of which the folder or another file cannot be read."""
    names = {
        "faces": "",
        "manifests": "manifest.json",
        "checksums": "manifest.json.sha256",
        "flows": "flow.json",
        "forwards": "forward.onnx",
        "reverses": "reverse.onnx",
    }
    first, broken = models / "digits" / "1", {model: models / model / "2" / names[model] for model in names}
    for model in names:
        shutil.copytree(first, models / model / "1")
        shutil.copytree(first, models / model / "2")
    with ExitStack() as stack:
        for path in broken.values():
            stack.enter_context(unreadable(path))
        server, stubs = stack.enter_context(started(start_server, models))
        assert served(stubs) == sorted([("digits", 1), *((model, 1) for model in names)])
        assert not_served(stubs) == {
            (model, 2): f"bundle {model}/2: {name or 'manifest.json'} cannot be read: Permission denied"
            for model, name in names.items()
        }
        assert server.metric("glowserve_model_loads_total") == 1 + 2 * len(names)
        publish(first, models / "digits" / "2")
        wait_for(lambda: served(stubs) == sorted([("digits", 2), *((model, 1) for model in names)]))
        for path in broken.values():
            path.chmod(0o755)
        wait_for(lambda: served(stubs) == sorted([("digits", 2), *((model, 2) for model in names)]))
        server.stop()


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def device(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def listening_socket(path: Path) -> None:
    path.unlink()
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(os.path.relpath(path))


@pytest.mark.parametrize(
    ("make", "name"),
    [
        # A FIFO is what a reader would wait at. One function reads all files.
        *(
            (fifo, name)
            for name in ("manifest.json", "manifest.json.sha256", "flow.json", "forward.onnx", "reverse.onnx")
        ),
        *((make, "forward.onnx") for make in (device, folder, loop, listening_socket)),
    ],
)
def test_a_file_that_is_no_regular_file_is_refused_and_later_versions_are_served(
    run_service: RunService, models: Path, tmp_path: Path, make: Callable[[Path], None], name: str
) -> None:
    shutil.copytree(models / "digits" / "1", tmp_path / "2")
    make(tmp_path / "2" / name)
    with run_service(repository=models, **ON_REQUEST) as service:
        (tmp_path / "2").rename(models / "digits" / "2")
        service.poll()
        service.poll()
        assert service.not_served() == [("digits", 2, "REFUSED")]
        assert service.reason().startswith(f"bundle digits/2: {name} cannot be read: ")
        publish(models / "digits" / "1", models / "digits" / "3")
        service.poll()
        assert service.served() == [("digits", 3)]


def test_what_is_ignored_is_logged_once_with_the_reason(
    run_service: RunService, models: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("digits/01", "digits/v1", "digits/2", ".git", "my model", "empty", "digits/.staging-3"):
        (models / name).mkdir()
    (models / os.fsdecode(b"caf\xe9")).mkdir()
    (models / "digits" / "3").write_text("a file")
    (models / "digits" / "4").symlink_to("nowhere")
    (models / "gone").symlink_to("nowhere")
    (models / "README.md").write_text("a file")
    (models / "digits" / "README.md").write_text("a file")
    with run_service(repository=models, **ON_REQUEST) as service:
        for _ in range(3):
            service.poll()
        assert service.served() == [("digits", 1)]
        assert service.not_served() == []
    ignored = [each.message for each in records_of(caplog) if "is ignored" in each.message]
    number = "a version's name is a whole number from 1, without leading zeros"
    letters = "a model's name is 1 to 128 letters, digits, dots, dashes and underscores, and begins with"
    assert [line.replace(" in the repository is ignored", "") for line in ignored] == [
        f"'caf\\udce9': {letters} a letter or a digit",
        f"'digits/01': {number}",
        "'digits/2': there is no manifest.json in it",
        "'digits/3': it is not a folder",
        "'digits/4': there is no manifest.json in it",
        f"'digits/v1': {number}",
        "'empty': there is no version in it",
        "'gone': it is a symbolic link to nothing",
        f"'my model': {letters} a letter or a digit",
    ]


def test_a_loop_of_links_in_place_of_a_folder_is_refused_alone(run_service: RunService, models: Path) -> None:
    (models / "digits" / "2").symlink_to("2")
    (models / "faces").symlink_to("faces")
    with run_service(repository=models, **ON_REQUEST) as service:
        assert service.served() == [("digits", 1)]
        assert service.not_served() == [("digits", 2, "REFUSED"), ("faces", 0, "REFUSED")]


def test_thousands_of_folders_cost_a_bounded_number_of_log_lines(
    run_service: RunService, models: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(3000):
        (models / "digits" / f"v{number}").mkdir()
    with run_service(repository=models, **ON_REQUEST) as service:
        service.poll()
        assert service.served() == [("digits", 1)]
    lines = [each.message for each in records_of(caplog) if "ignored" in each.message]
    assert len(lines) == 21
    assert lines[-1] == "2980 more folders in the repository are ignored"


def test_of_thousands_of_broken_versions_the_newest_hundred_are_tried(
    run_service: RunService, models: Path
) -> None:
    with run_service(repository=models, **ON_REQUEST) as service:
        for number in range(2, 2002):
            (models / "digits" / str(number)).mkdir()
            (models / "digits" / str(number) / "manifest.json").write_text("{}")
        service.poll()
        assert service.served() == [("digits", 1)]
        assert [version for _, version, _ in service.not_served()] == list(range(1901, 2002))


def test_a_repository_with_nothing_but_unreadable_models_ends_the_start_with_a_sentence(models: Path) -> None:
    (models / "digits").rename(models.parent / "away")
    (models / "digits").symlink_to("digits")
    assert failed_start("--repository", str(models), "--port", "0", "--metrics-port", "0")[-1] == (
        "model digits: its folder cannot be listed: Too many levels of symbolic links"
    )
