"""gRPC reflection, v1 and v1alpha: a client that knows only the address learns the contract, and calls the service."""

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


@pytest.fixture(scope="module", params=["v1", "v1alpha"])
def found(
    request: pytest.FixtureRequest,
    server: Server,
    digits: UInt8Array,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Any]:
    """What the program learns."""
    folder = tmp_path_factory.mktemp("reflection")
    (folder / "digit.png").write_bytes(encode_png(digits[0]))
    command = [sys.executable, str(PROGRAM), address(server), "digit.png", request.param]
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 0, ended.stderr
    result: dict[str, Any] = json.loads(ended.stdout)
    return result


def test_reflection_lists_the_services(found: dict[str, Any]) -> None:
    assert sorted(found["services"]) == [
        "glowserve.v1.GlowService",
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
        "inference.GRPCInferenceService",
    ]


def test_reflection_describes_every_method_and_file_of_the_contract(found: dict[str, Any]) -> None:
    assert found["methods"] == [
        "Score",
        "ScoreStream",
        "Explain",
        "Sample",
        "ScoreSet",
        "Encode",
        "Decode",
        "Interpolate",
        "Manipulate",
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


def test_the_details_of_errors_are_described(found: dict[str, Any]) -> None:
    """A client finds them as Any in a status."""
    assert {"google.rpc.ErrorInfo", "google.rpc.BadRequest", "google.rpc.RetryInfo"} <= set(found["types"])


def test_every_service_that_is_listed_is_described(found: dict[str, Any]) -> None:
    assert found["described"] == found["services"]


def test_v1_is_described_by_the_numbers_of_its_contract(found: dict[str, Any]) -> None:
    """Those of grpc/reflection/v1/reflection.proto."""
    assert found["v1"] == {
        "ServerReflectionRequest": {
            "host": 1,
            "file_by_filename": 3,
            "file_containing_symbol": 4,
            "file_containing_extension": 5,
            "all_extension_numbers_of_type": 6,
            "list_services": 7,
        },
        "ExtensionRequest": {"containing_type": 1, "extension_number": 2},
        "ServerReflectionResponse": {
            "valid_host": 1,
            "original_request": 2,
            "file_descriptor_response": 4,
            "all_extension_numbers_response": 5,
            "list_services_response": 6,
            "error_response": 7,
        },
        "FileDescriptorResponse": {"file_descriptor_proto": 1},
        "ExtensionNumberResponse": {"base_type_name": 1, "extension_number": 2},
        "ListServiceResponse": {"service": 1},
        "ServiceResponse": {"name": 1},
        "ErrorResponse": {"error_code": 1, "error_message": 2},
    }
