"""What tests share: one small model of handwritten digits, trained, exported and served for real."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from glowserve_service.config import ServiceConfig
from glowserve_service.server import Server

import glowserve
from glowserve.images import UInt8Array
from glowserve.runtime.config import RuntimeConfig
from glowserve.runtime.engine import Engine
from glowserve.runtime.repository import Bundle, newest_bundle

RunServer = Callable[..., AbstractContextManager[Server]]
StartServer = Callable[..., AbstractContextManager[tuple[subprocess.Popen[str], str, str]]]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real data that lies beside the checkout; $GLOWSERVE_SHARED says where."""
    path = Path(os.environ.get("GLOWSERVE_SHARED", "../shared")) / "data"
    if not path.is_dir():
        pytest.skip(f"no data in {path}; set GLOWSERVE_SHARED to a folder that has it")
    return path


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of a small model, trained on the digits for some seconds."""
    from glowserve_training.hardware import Hardware
    from glowserve_training.presets import run_config
    from glowserve_training.run import train

    config = run_config("digits", steps_per_level=4, width=32, steps=200, batch_size=32)
    return train(config, tmp_path_factory.mktemp("run"), hardware=Hardware(device="cpu"))


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the model and its images are. $GLOWSERVE_TEST_FILES names a folder for them, which another environment,
    that can neither train nor export, finds them in."""
    path = Path(os.environ.get("GLOWSERVE_TEST_FILES") or tmp_path_factory.mktemp("files"))
    path.mkdir(parents=True, exist_ok=True)
    return path


@pytest.fixture(scope="session")
def repository(files: Path, request: pytest.FixtureRequest) -> Path:
    """A repository with that model as `digits`, version 1. Tests do not write to it."""
    path = files / "models"
    if not path.is_dir():
        from glowserve_export.bundle import export
        from glowserve_export.source import trained_here

        export(trained_here(request.getfixturevalue("checkpoint")), path / "digits")
    return path


@pytest.fixture(scope="session")
def bundle(repository: Path) -> Bundle:
    """That model's bundle."""
    return newest_bundle(repository / "digits")


@pytest.fixture(scope="session")
def engine(bundle: Bundle) -> Engine:
    """As a service runs that model: several runs of one thread each, side by side."""
    return Engine(bundle, RuntimeConfig(device="cpu", threads=1))


@pytest.fixture(scope="session")
def digits(files: Path) -> UInt8Array:
    """Test images of that model, uint8 [179, 8, 8, 1]: not trained on."""
    path = files / "digits.npy"
    if not path.is_file():
        from glowserve_training.data import DataConfig, load_images

        np.save(path, load_images(DataConfig(data="digits", image_size=8, channels=1)).test)
    images: UInt8Array = np.load(path)
    return images


@pytest.fixture(scope="session")
def embedded(repository: Path) -> Any:
    """That model, opened in this process."""
    return glowserve.open(repository / "digits")


@pytest.fixture(scope="session")
def run_server(repository: Path) -> RunServer:
    """Runs a server in a thread of this process: `with run_server(max_queue_size=...) as server`."""

    @contextmanager
    def run(**settings: Any) -> Iterator[Server]:
        settings = {"repository": repository, "port": 0, "metrics_port": 0, "device": "cpu"} | settings
        started: Future[tuple[Server, asyncio.AbstractEventLoop, asyncio.Event]] = Future()

        async def live() -> None:
            server = Server(ServiceConfig(**settings))
            try:
                await server.start()
            except BaseException as error:
                started.set_exception(error)
                return
            ended = asyncio.Event()
            started.set_result((server, asyncio.get_running_loop(), ended))
            await ended.wait()
            await server.stop()

        thread = threading.Thread(target=lambda: asyncio.run(live()))
        thread.start()
        try:
            server, loop, ended = started.result(60)
            yield server
            loop.call_soon_threadsafe(ended.set)
        except BaseException:
            if started.done() and not started.exception():
                loop.call_soon_threadsafe(ended.set)
            raise
        finally:
            thread.join(60)
            assert not thread.is_alive(), "the server did not stop"

    return run


@pytest.fixture(scope="session")
def server(run_server: RunServer) -> Iterator[Server]:
    """A server of that model with settings as they come, for tests that leave it as it was."""
    with run_server() as running:
        yield running


@pytest.fixture
def client(server: Server) -> Iterator[glowserve.Client]:
    """A client of `server`."""
    with glowserve.Client(f"127.0.0.1:{server.port}") as connected:
        yield connected


@pytest.fixture(scope="session")
def start_server(repository: Path) -> StartServer:
    """Runs `glowserve serve` as a process of its own, for tests that send it signals.

    `with start_server("--drain-seconds", "5") as (process, target, metrics_url)`; killed at the end at the latest.
    """

    @contextmanager
    def start(*flags: str, **options: Any) -> Iterator[tuple[subprocess.Popen[str], str, str]]:
        command = [sys.executable, "-m", "glowserve", "serve", "--repository", str(repository)]
        command += ["--port", "0", "--metrics-port", "0", "--device", "cpu", *flags]
        with ExitStack() as stack:
            process = stack.enter_context(
                subprocess.Popen(
                    command,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                    pipesize=2**20,  # nobody reads the log until the end, and each call adds a line
                    **options,
                )
            )
            stack.callback(process.kill)
            assert process.stdout is not None
            line = process.stdout.readline()  # "glowserve: serving gRPC on HOST:PORT, metrics on URL"
            assert line.startswith("glowserve: serving"), line or process.communicate()
            _, target, url = line.strip().split(" on ")
            yield process, target.split(",")[0], url

    return start


@pytest.fixture
def rng() -> np.random.Generator:
    """Random numbers, the same in every run."""
    return np.random.default_rng(0)
