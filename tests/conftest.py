"""What tests share: one small model of handwritten digits, trained, exported and served for real."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Generator, Iterator
from functools import partial
from pathlib import Path

# Before PyTorch and NumPy are imported, here and in processes that tests start: models of this size are slower on
# several threads, which moreover wait for each other by spinning, on cores that other tests need.
os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import pytest
from glowserve_service.front import front
from glowserve_service.server import Server

import glowserve
from glowserve.images import UInt8Array
from glowserve.runtime.config import RuntimeConfig
from glowserve.runtime.engine import Engine
from glowserve.runtime.repository import Bundle, newest_bundle
from tests import servers
from tests.servers import RunServer, StartServer

_SHARED = Path(os.environ.get("GLOWSERVE_SHARED", "../shared"))


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Spares the garbage collector the modules and tests that are collected: they live until the end."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips tests of what is in the process of the front, where that is another one."""
    if servers.FRONTENDS > 1:
        for item in items:
            if marker := item.get_closest_marker("one_frontend"):
                item.add_marker(pytest.mark.skip(reason=marker.args[0]))


@pytest.fixture(scope="session", autouse=True)
def _no_variable_of_the_tests() -> None:
    """A service that a test starts would take it for a misspelled one of its own."""
    os.environ.pop("GLOWSERVE_SHARED", None)


@pytest.fixture(scope="session", autouse=True)
def _decoders_on_demand() -> Iterator[None]:
    """Servers in this process start no process that decodes pictures before there is a picture."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(front, "Decoders", servers.DecodersOnDemand)
        yield


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real data that lies beside the checkout; $GLOWSERVE_SHARED says where."""
    path = _SHARED / "data"
    if not path.is_dir():
        pytest.skip(f"no data in {path}; set GLOWSERVE_SHARED to a folder that has it")
    return path


@pytest.fixture(scope="session")
def common_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the processes of a run share: what takes long is made there by one of them, with `once`."""
    path = tmp_path_factory.getbasetemp()
    return path.parent if "PYTEST_XDIST_WORKER" in os.environ else path


def once(path: Path, make: Callable[[Path], object]) -> Path:
    """Makes a file or folder unless it is there; other processes wait for it."""
    if not path.exists():
        from filelock import FileLock

        unfinished = path.with_name(f"unfinished-{path.name}")
        with FileLock(f"{path}.lock"):
            if not path.exists():
                make(unfinished)
                unfinished.rename(path)
    return path


@pytest.fixture(scope="session")
def checkpoint(common_folder: Path) -> Path:
    """The checkpoint of a small model, trained on the digits for some seconds."""
    return once(common_folder / "run", _train) / "model.ckpt"


def _train(run_dir: Path) -> None:
    from glowserve_training.hardware import Hardware
    from glowserve_training.presets import run_config
    from glowserve_training.run import train

    config = run_config("digits", steps_per_level=4, width=32, steps=200, batch_size=32)
    train(config, run_dir, hardware=Hardware(device="cpu"))


@pytest.fixture(scope="session")
def files(common_folder: Path) -> Path:
    """Where the model and its images are. $GLOWSERVE_TEST_FILES names a folder for them, which another environment,
    that can neither train nor export, finds them in."""
    path = Path(os.environ.get("GLOWSERVE_TEST_FILES") or common_folder / "files")
    path.mkdir(parents=True, exist_ok=True)
    return path


@pytest.fixture(scope="session")
def repository(files: Path, request: pytest.FixtureRequest) -> Path:
    """A repository with that model as `digits`, version 1. Tests do not write to it."""

    def export_checkpoint(models: Path) -> None:
        from glowserve_export.bundle import export
        from glowserve_export.source import load_glowserve_checkpoint

        export(load_glowserve_checkpoint(request.getfixturevalue("checkpoint")), models / "digits")

    return once(files / "models", export_checkpoint)


@pytest.fixture(scope="session")
def explosive_repository(repository: Path, common_folder: Path) -> Path:
    """A repository with a `digits`, version 1, whose samples are not finite in about half of the attempts."""
    from tests.service.bundles import make_explosive

    return once(
        common_folder / "explosive",
        lambda path: make_explosive(repository / "digits" / "1", path / "digits" / "1"),
    )


@pytest.fixture(scope="session")
def explosive_engine(explosive_repository: Path) -> Engine:
    """As a service runs that model."""
    return Engine(newest_bundle(explosive_repository / "digits"), RuntimeConfig(device="cpu", threads=1))


@pytest.fixture(scope="session")
def attributed_repository(
    repository: Path, engine: Engine, digits: UInt8Array, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A repository with `digits`, version 1, whose attributes are "bright" and "top": more ink than most digits have,
    and more of it in the upper half than below."""
    from glowserve.runtime.attributes import Attributes
    from tests.service.bundles import with_attributes

    latents = engine.forward(digits, np.full(digits.shape, 0.5, np.float32)).latent
    halves = digits.reshape(-1, 2, 32).sum(axis=2, dtype=np.int64)
    having = [halves.sum(axis=1) > np.median(halves.sum(axis=1)), halves[:, 0] > halves[:, 1]]
    directions = np.stack([latents[some].mean(axis=0) - latents[~some].mean(axis=0) for some in having])
    attributes = Attributes(("bright", "top"), directions, np.array([0.9, 0.8], np.float32))
    path = tmp_path_factory.mktemp("attributed")
    with_attributes(repository / "digits" / "1", path / "digits" / "1", attributes)
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

    def save(path: Path) -> None:
        from glowserve_training.data import DataConfig, load_images

        np.save(path, load_images(DataConfig(data="digits", image_size=8, channels=1)).test)

    images: UInt8Array = np.load(once(files / "digits.npy", save))
    return images


@pytest.fixture(scope="session")
def embedded(repository: Path) -> glowserve.Client:
    """That model, opened in this process."""
    return glowserve.open(repository / "digits")


@pytest.fixture(scope="session")
def run_server(repository: Path) -> RunServer:
    """Runs a server in a thread of this process: see tests/servers.py."""
    return partial(servers.run_server, repository)


@pytest.fixture(scope="session")
def server(run_server: RunServer) -> Iterator[Server]:
    """A server of that model, for tests that leave it as it was.

    It tries no canary: one would run through whatever another test has put in the engine's place for its own server.
    """
    with run_server(canary_seconds=0) as running:
        yield running


@pytest.fixture
def client(server: Server) -> Iterator[glowserve.Client]:
    """A client of `server`."""
    with glowserve.Client(f"127.0.0.1:{server.port}") as connected:
        yield connected


@pytest.fixture(scope="session")
def start_server(repository: Path) -> StartServer:
    """Runs `glowserve serve` as a process of its own: see tests/servers.py."""
    return partial(servers.start_server, repository)


@pytest.fixture
def rng() -> np.random.Generator:
    """Random numbers, the same in every run."""
    return np.random.default_rng(0)
