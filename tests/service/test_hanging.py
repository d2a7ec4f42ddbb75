"""What hangs does not hang for good: loads and batches that never end, and a service that stops while they do.

The processes are real. A load hangs while there is a file `hang` in its folder.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from glowserve.images import UInt8Array
from glowserve.v1 import glow_service_pb2 as pb
from tests.servers import StartServer, free_port, listens
from tests.service.stubs import SERVING, Stubs, connect
from tests.service.wire import raw, wait_for

PROGRAMS = Path(__file__).parent / "programs"
HANGING_LOADS, HELD, HANGING_STOP = (
    str(PROGRAMS / f"serve_{name}.py") for name in ("hanging_loads", "held", "hanging_stop")
)
AT_ONCE = ("--drain-seconds", "0")


@pytest.fixture
def models(repository: Path, tmp_path: Path) -> Path:
    shutil.copytree(repository / "digits" / "1", tmp_path / "models" / "digits" / "1")
    return tmp_path / "models"


def add_version(models: Path, version: int, *, hangs: bool = False) -> Path:
    """Publishes a copy of version 1."""
    staging, target = models / "digits" / f".staging-{version}", models / "digits" / str(version)
    shutil.copytree(models / "digits" / "1", staging)
    if hangs:
        (staging / "hang").touch()
    staging.rename(target)
    return target


def versions(stubs: Stubs) -> list[int]:
    return [each.model.version for each in stubs.glow.ListModels(pb.ListModelsRequest()).models]


def reasons(stubs: Stubs) -> dict[int, str]:
    """Why versions are not served, without those that are being loaded."""
    listed = stubs.glow.ListModels(pb.ListModelsRequest()).not_served
    return {each.model.version: each.reason for each in listed if each.reason}


@contextmanager
def ends_within(seconds: float) -> Iterator[None]:
    began = time.monotonic()
    yield
    assert time.monotonic() - began < seconds


def test_a_load_that_hangs_is_refused_and_later_versions_are_served(
    start_server: StartServer, models: Path
) -> None:
    flags = ("--repository", str(models), "--poll-seconds", "0.1", "--load-timeout-seconds", "1")
    with (
        start_server(*flags, *AT_ONCE, program=[HANGING_LOADS]) as server,
        connect(server.target) as stubs,
    ):
        add_version(models, 2, hangs=True)
        too_long = "bundle digits/2: it has taken longer than load_timeout_seconds, 1 s"
        wait_for(lambda: reasons(stubs) == {2: too_long})
        assert server.metric("glowserve_hanging_loads") == 1
        add_version(models, 3)
        wait_for(lambda: versions(stubs) == [3])
        assert server.metric("glowserve_model_loads_total") == 3  # two were loaded, and one was refused, once
        (models / "digits" / "2" / "hang").unlink()
        wait_for(lambda: server.metric("glowserve_hanging_loads") == 0)
        with ends_within(30):
            log = server.stop()
    assert log.count("digits version 2 is refused") == 1


def test_no_more_than_three_loads_hang_and_the_service_still_stops(
    start_server: StartServer, models: Path
) -> None:
    flags = ("--repository", str(models), "--poll-seconds", "0.1", "--load-timeout-seconds", "1")
    with (
        start_server(*flags, *AT_ONCE, program=[HANGING_LOADS]) as server,
        connect(server.target) as stubs,
    ):
        for version in (2, 3, 4):
            add_version(models, version, hangs=True)
            wait_for(lambda version=version: server.metric("glowserve_hanging_loads") == version - 1)
        add_version(models, 5)
        time.sleep(1)
        assert versions(stubs) == [1]
        (models / "digits" / "2" / "hang").unlink()
        wait_for(lambda: versions(stubs) == [5])
        with ends_within(30):
            log = server.stop()
    assert log.count("3 earlier reads of the repository or loads of models hang") == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_during_a_first_load_that_hangs_ends_the_process_soon(
    start_server: StartServer, models: Path, number: signal.Signals
) -> None:
    (models / "digits" / "1" / "hang").touch()
    flags = ("--repository", str(models), "--drain-seconds", "600")
    with start_server(*flags, wait=False, program=[HANGING_LOADS]) as server:
        wait_for(lambda: listens(server.target))
        with ends_within(30):
            code, log = server.end(number)
    assert code == 0, log
    assert "stopping before every model is loaded" in log
    assert log.splitlines()[-1].endswith("stopped")


def test_a_first_load_that_hangs_ends_the_start_with_a_sentence(
    start_server: StartServer, models: Path
) -> None:
    (models / "digits" / "1" / "hang").touch()
    flags = ("--repository", str(models), "--load-timeout-seconds", "0.5")
    with start_server(*flags, wait=False, program=[HANGING_LOADS]) as server, ends_within(60):
        code, log = server.wait()
    assert code == 2
    assert log.splitlines()[-1].endswith("it has taken longer than load_timeout_seconds, 0.5 s")


def test_a_batch_that_never_ends_does_not_keep_a_server_from_stopping(
    start_server: StartServer, digits: UInt8Array, tmp_path: Path
) -> None:
    with (
        start_server("--drain-seconds", "0.5", program=[HELD, str(tmp_path / "never")]) as server,
        connect(server.target) as stubs,
    ):
        call = stubs.glow.Score.future(pb.ScoreRequest(images=raw(digits[:1])))
        wait_for(lambda: server.metric("glowserve_requests_in_flight") == 1)
        with ends_within(30):
            log = server.stop()
        assert call.exception()
    assert "digits version 1 hangs in a batch: it is left behind" in log


@pytest.mark.parametrize("how", ["sleep", "lock"])
def test_stopping_has_an_end_whatever_hangs(start_server: StartServer, how: str) -> None:
    with start_server(*AT_ONCE, program=[HANGING_STOP, how]) as server, ends_within(60):
        code, log = server.end()
    assert code == 1
    assert "serve_hanging_stop.py" in log  # where it hung


# The first process of a container

AS_PROCESS_1 = ("unshare", "--pid", "--fork", "--kill-child", sys.executable)


@contextmanager
def process_1(*command: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A process that is process 1 of a namespace, started by `unshare`; and its number outside."""
    if subprocess.run([*AS_PROCESS_1, "-c", ""], capture_output=True, check=False).returncode:
        pytest.skip("the system does not let this user make a namespace of processes")
    with subprocess.Popen([*AS_PROCESS_1, *command], stderr=subprocess.PIPE, text=True) as outer:
        try:
            children = Path(f"/proc/{outer.pid}/task/{outer.pid}/children")
            wait_for(lambda: children.read_text().strip())
            yield outer, int(children.read_text())
        finally:
            outer.kill()


def serve_as_process_1(models: Path, port: int) -> list[str]:
    flags = [
        "--repository",
        str(models),
        "--port",
        str(port),
        "--metrics-port",
        "0",
        "--drain-seconds",
        "600",
    ]
    return [HELD, str(models / "never"), "serve", "--device", "cpu", *flags]


def test_as_process_1_the_first_signal_stops_the_server_and_the_second_ends_it_at_once(
    models: Path, digits: UInt8Array
) -> None:
    port = free_port()
    with (
        process_1(*serve_as_process_1(models, port)) as (outer, inner),
        connect(f"127.0.0.1:{port}") as stubs,
    ):
        wait_for(lambda: listens(f"127.0.0.1:{port}"))
        wait_for(lambda: stubs.status() == SERVING)
        watch = stubs.watch()
        next(watch)
        call = stubs.glow.Score.future(pb.ScoreRequest(images=raw(digits[:1])))
        time.sleep(0.5)
        os.kill(inner, signal.SIGTERM)
        assert next(watch).status != SERVING
        assert outer.poll() is None
        with ends_within(30):
            os.kill(inner, signal.SIGTERM)
            assert outer.wait(60) == 128 + signal.SIGTERM
        assert call.exception()


def test_as_process_1_a_signal_during_the_imports_ends_the_process(models: Path) -> None:
    """Linux keeps a signal from process 1 that has no handler for it. The command's own first lines are what is tested:
    the signal comes as soon as they have run."""
    program = (
        "import os, signal, sys\n"
        "from glowserve_service import signals\n"
        "prepare = signals.prepare\n"
        "signals.prepare = lambda: (prepare(), os.kill(os.getpid(), signal.SIGTERM))\n"
        "from glowserve.cli import main\n"
        "sys.exit(main())\n"
    )
    flags = ("serve", "--repository", str(models), "--port", "0", "--metrics-port", "0")
    with process_1("-c", program, *flags) as (outer, _), ends_within(60):
        assert outer.wait(60) == 128 + signal.SIGTERM
