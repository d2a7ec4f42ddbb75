"""What a process needs: the service neither training nor export, the client nothing but the contract.

Each test runs a new interpreter in which the other packages cannot be imported, installed though they are.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from glowserve_service.server import Server

import glowserve
from glowserve.images import UInt8Array

TRAINING = (
    "torch",
    "lightning",
    "training",
    "export",
    "onnx",
    "datasets",
    "sklearn",
    "matplotlib",
    "tensorboard",
)
NOT_THE_CLIENTS = (
    "onnxruntime",
    "torch",
    "service",
    "training",
    "export",
    "prometheus_client",
    "grpc_status",
    "onnx",
    "datasets",
)

# Refuses packages, and makes sure that it does.
BLOCK = """
import importlib, sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Block())
for name in BLOCKED:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError:
        continue
    raise SystemExit(f"{name} could be imported")
"""

SERVE = """
from glowserve.cli import main
raise SystemExit(main(sys.argv[1:]))
"""

ASK = """
import json
import numpy as np
import glowserve

with glowserve.Client(sys.argv[1]) as client:
    scores = client.score(np.load(sys.argv[2]))
    samples = client.sample(3, seed=5)
print(json.dumps({"bits_per_dim": scores.bits_per_dim.tolist(), "samples": samples.images.tolist()}))
"""


def _program(blocked: tuple[str, ...], body: str) -> list[str]:
    return [sys.executable, "-c", f"BLOCKED = {blocked!r}{BLOCK}{body}"]


@pytest.fixture
def images_path(digits: UInt8Array, tmp_path: Path) -> Path:
    """Some digits in a file."""
    np.save(tmp_path / "digits.npy", digits[:9])
    return tmp_path / "digits.npy"


def _ask(program: list[str], server: Server, images: Path, **options: Any) -> Any:
    """What a client in another process was answered."""
    command = [*program, f"127.0.0.1:{server.port}", str(images)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, **options)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def _expected(client: glowserve.Client, digits: UInt8Array) -> dict[str, Any]:
    return {
        "bits_per_dim": client.score(digits[:9]).bits_per_dim.tolist(),
        "samples": client.sample(3, seed=5).images.tolist(),
    }


def test_the_service_starts_and_answers_where_training_and_export_cannot_be_imported(
    repository: Path, digits: UInt8Array, embedded: Any
) -> None:
    command = _program(TRAINING, SERVE)
    command += [
        "serve",
        "--repository",
        str(repository),
        "--port",
        "0",
        "--metrics-port",
        "0",
        "--device",
        "cpu",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()  # "glowserve: serving gRPC on HOST:PORT, metrics on URL"
            assert line.startswith("glowserve: serving gRPC on "), line or process.communicate()
            target = line.split(" on ")[1].split(",")[0]
            with glowserve.Client(target) as client:
                scores = client.score(digits[:9])
                samples = client.sample(2, seed=1)
            process.send_signal(signal.SIGTERM)
            _, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 0, errors
    np.testing.assert_allclose(scores.bits_per_dim, embedded.score(digits[:9]).bits_per_dim, rtol=1e-6)
    assert samples.images.shape == (2, 8, 8, 1)


def test_a_client_needs_neither_a_runtime_nor_the_other_packages(
    server: Server, client: glowserve.Client, digits: UInt8Array, images_path: Path
) -> None:
    answered = _ask(_program(NOT_THE_CLIENTS, ASK), server, images_path)
    assert answered == _expected(client, digits)


@pytest.mark.parametrize("package", ["service", "training", "export", "tests"])
def test_a_client_works_in_a_folder_that_has_a_package_of_the_same_name(
    package: str,
    server: Server,
    client: glowserve.Client,
    digits: UInt8Array,
    images_path: Path,
    tmp_path: Path,
) -> None:
    (tmp_path / "work" / package).mkdir(parents=True)
    (tmp_path / "work" / package / "__init__.py").write_text("mine = True")
    body = f"{ASK}\nimport {package}\nassert {package}.mine, {package}.__file__\n"
    answered = _ask(_program((), body), server, images_path, cwd=tmp_path / "work")
    assert answered == _expected(client, digits)
