"""The way of a request in processes that lack packages: a service without training and export, a bundle opened without
the service, a client without everything but the contract.

Each process refuses to import the other packages, although they are installed.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from glowserve_service.server import Server

import glowserve
from glowserve.images import UInt8Array

PROGRAMS = Path(__file__).parent / "programs"
NOT_NEEDED_BY_THE_SERVICE = (
    *("glowserve_training", "glowserve_export"),
    *("torch", "lightning", "onnx", "datasets", "sklearn", "matplotlib", "tensorboard"),
)
NOT_NEEDED_BY_AN_OPENED_BUNDLE = (
    *NOT_NEEDED_BY_THE_SERVICE,
    *("glowserve_service", "glowserve.cli", "glowserve.demo", "glowserve.oip"),
    *("prometheus_client", "grpc_status", "grpc_health", "grpc_reflection", "opentelemetry"),
)
NOT_NEEDED_BY_A_CLIENT = (*NOT_NEEDED_BY_AN_OPENED_BUNDLE, "glowserve.runtime", "onnxruntime")


def program(name: str, refused: tuple[str, ...]) -> list[str]:
    """The command line of a program in `programs/` that cannot import some packages."""
    return [sys.executable, str(PROGRAMS / name), ",".join(refused)]


@pytest.fixture
def images(digits: UInt8Array) -> UInt8Array:
    return digits[:9]


def score_and_sample(
    refused: tuple[str, ...], source: str, images: UInt8Array, folder: Path
) -> dict[str, Any]:
    """What the program printed for a HOST:PORT or a REPOSITORY/MODEL."""
    np.save(folder / "images.npy", images)
    command = [*program("score_and_sample.py", refused), source, str(folder / "images.npy")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    printed: dict[str, Any] = json.loads(done.stdout)
    return printed


def test_the_service_starts_and_answers_without_training_and_export(
    serve: Callable[..., AbstractContextManager[str]], repository: Path, images: UInt8Array, embedded: Any
) -> None:
    with (
        serve(program("command_line.py", NOT_NEEDED_BY_THE_SERVICE), repository) as target,
        glowserve.Client(target) as client,
    ):
        scores = client.score(images)
        samples = client.sample(2, seed=1)
    np.testing.assert_allclose(scores.bits_per_dim, embedded.score(images).bits_per_dim, rtol=1e-6)
    assert samples.images.shape == (2, 8, 8, 1)


def test_a_bundle_opens_without_the_service(
    repository: Path, embedded: Any, images: UInt8Array, tmp_path: Path
) -> None:
    printed = score_and_sample(NOT_NEEDED_BY_AN_OPENED_BUNDLE, str(repository / "digits"), images, tmp_path)
    assert printed == {
        "bits_per_dim": embedded.score(images).bits_per_dim.tolist(),
        "samples": embedded.sample(3, seed=5).images.tolist(),
    }


def test_a_client_needs_neither_the_runtime_nor_the_service(
    server: Server, client: glowserve.Client, images: UInt8Array, tmp_path: Path
) -> None:
    printed = score_and_sample(NOT_NEEDED_BY_A_CLIENT, f"127.0.0.1:{server.port}", images, tmp_path)
    assert printed == {
        "bits_per_dim": client.score(images).bits_per_dim.tolist(),
        "samples": client.sample(3, seed=5).images.tolist(),
    }
