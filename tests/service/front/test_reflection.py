"""gRPC reflection: a client that knows nothing but the address learns the contract, and calls the service."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from glowserve_service.server import Server

import glowserve
from glowserve.images import UInt8Array, encode_png
from tests.service.stubs import address

PROGRAM = Path(__file__).parents[1] / "programs" / "reflection_client.py"
PROTOS = Path(__file__).parents[3] / "protos"


@pytest.fixture(scope="module")
def found(server: Server, digits: UInt8Array, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the program learns."""
    folder = tmp_path_factory.mktemp("reflection")
    (folder / "digit.png").write_bytes(encode_png(digits[0]))
    command = [sys.executable, str(PROGRAM), address(server), "digit.png"]
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 0, ended.stderr
    result: dict[str, Any] = json.loads(ended.stdout)
    return result


def test_reflection_lists_the_services(found: dict[str, Any]) -> None:
    assert sorted(found["services"]) == [
        "glowserve.v1.GlowService",
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
        "inference.GRPCInferenceService",
    ]


def test_reflection_describes_every_method_and_file_of_the_contract(found: dict[str, Any]) -> None:
    assert found["methods"] == [
        "Score",
        "ScoreStream",
        "Sample",
        "Encode",
        "Decode",
        "Interpolate",
        "ListModels",
        "GetModel",
        "LoadModel",
        "UnloadModel",
    ]
    files = {str(file.relative_to(PROTOS)) for file in (PROTOS / "glowserve" / "v1").glob("*.proto")}
    assert files == {name for name in found["files"] if name.startswith("glowserve/")}


def test_a_client_that_knows_reflection_alone_scores_and_samples(
    found: dict[str, Any], client: glowserve.Client, digits: UInt8Array
) -> None:
    assert found["ours"] == []
    assert found["model"] == "digits"
    assert found["seed"] == 7
    assert found["log_likelihood"] == client.score(digits[0], seed=7).log_likelihood.tolist()
    assert found["samples"] == 3
