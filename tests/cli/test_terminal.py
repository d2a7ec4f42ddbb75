"""What a hostile server, a bundle or the name of a file says reaches a terminal as text, not as commands to it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import json_format

from glowserve.cli import main
from glowserve.images import UInt8Array, encode_png
from glowserve.output import printable
from glowserve.runtime.manifest import CHECKSUM, MANIFEST, manifest_checksum
from glowserve.v1 import glow_service_pb2 as pb
from glowserve.v1 import manifest_pb2
from glowserve.v1.glow_service_pb2_grpc import GlowServiceServicer
from tests.client.serving import serve
from tests.service.wire import copied

HOSTILE = "\x1b]0;title\x07\x1b[2J\r\n\x9b1A\u202e\u2028"
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names of files")


class HostileServicer(GlowServiceServicer):
    """Its strings are commands to a terminal."""

    def ListModels(self, request: Any, context: Any) -> Any:
        model = pb.ModelSummary(model=pb.ModelVersion(name=HOSTILE, version=1), reason=HOSTILE)
        return pb.ListModelsResponse(not_served=[model])

    def Score(self, request: Any, context: grpc.ServicerContext) -> Any:
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, HOSTILE)

    def ScoreStream(self, requests: Any, context: grpc.ServicerContext) -> Any:
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, HOSTILE)

    def Sample(self, request: Any, context: grpc.ServicerContext) -> Any:
        context.abort(grpc.StatusCode.INTERNAL, HOSTILE)


@pytest.fixture
def hostile() -> Iterator[str]:
    with serve(HostileServicer()) as target:
        yield target


@pytest.fixture
def picture(tmp_path: Path, digits: UInt8Array) -> Path:
    """A picture whose name is commands to a terminal, and is not UTF-8."""
    path = tmp_path / os.fsdecode(HOSTILE.encode() + b"\xff.png")
    path.write_bytes(encode_png(digits[0]))
    return path


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, list[str]]:
    """The exit code, and the lines that a terminal gets."""
    code = main(arguments)
    out, err = capsys.readouterr()
    lines = (out + err).split("\n")
    assert all(printable(line) == line for line in lines), lines
    return code, lines


def test_a_servers_list_of_models(hostile: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, (_, model, reason, _) = run(capsys, "models", "--server", hostile)
    assert code == 0
    assert model.startswith(printable(HOSTILE))
    assert reason == f"  {printable(HOSTILE)}"
    assert main(["models", "--json", "--server", hostile]) == 0
    out = capsys.readouterr().out
    assert printable(out.removesuffix("\n")) == out.removesuffix("\n")
    assert json.loads(out)[0]["name"] == HOSTILE


def test_a_servers_errors(
    hostile: str, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, lines = run(capsys, "score", str(picture), "--server", hostile)
    assert code == 1
    (refused,) = [line for line in lines if "INVALID_ARGUMENT" in line]
    assert refused.count(printable(HOSTILE)) == 2  # the name of the file, and the server's message
    code, (line, _) = run(capsys, "sample", "--out", str(tmp_path / "a.png"), "--server", hostile)
    assert (code, line) == (1, f"glowserve: INTERNAL: {printable(HOSTILE)}")


def test_names_of_files(repository: Path, picture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = ["--model", str(repository / "digits")]
    code, lines = run(capsys, "score", str(picture), *model)
    assert code == 0
    assert lines[1].startswith(printable(str(picture)))
    assert lines[0].index("bits/dim") + len("bits/dim") == len(printable(str(picture))) + 14
    (picture.with_suffix(".txt")).write_bytes(b"no picture")
    assert run(capsys, "score", str(picture.with_suffix(".txt")), *model)[0] == 1
    assert run(capsys, "score", str(picture.parent / "none\x1b[2J"), *model)[0] == 1
    assert run(capsys, "inspect", str(picture.parent / "none\x1b[2J"))[0] == 2
    out = str(picture.parent / "strip.png")
    assert run(capsys, "interpolate", str(picture), str(picture), "--out", out, *model)[0] == 0


@pytest.mark.parametrize("command", ["inspect", "verify"])
def test_a_bundles_manifest(
    repository: Path, tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "digits" / "1"
    copied(repository / "digits" / "1", folder)
    manifest = json_format.Parse((folder / MANIFEST).read_bytes(), manifest_pb2.Manifest())
    manifest.training.data = manifest.calibration.data = manifest.glowserve_version = HOSTILE
    manifest.tools[HOSTILE] = HOSTILE
    manifest.verification.checks.add(name=HOSTILE, layer=HOSTILE)
    manifest.verification.unseen.add(kind=HOSTILE)
    manifest.verification.steps.add(step=HOSTILE)
    manifest.files.add(name=HOSTILE, sha256=64 * "0", size=1)
    data = json_format.MessageToJson(manifest).encode()
    (folder / MANIFEST).write_bytes(data)
    (folder / CHECKSUM).write_bytes(manifest_checksum(data))
    code, lines = run(capsys, command, str(folder))
    assert code == 0
    assert printable(HOSTILE) in "".join(lines)


def test_a_wrong_argument(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["models", HOSTILE])
    assert printable(HOSTILE) in capsys.readouterr().err


def test_letters_that_the_output_cannot_encode_become_escapes(
    repository: Path, tmp_path: Path, digits: UInt8Array
) -> None:
    path = tmp_path / "数字.png"
    path.write_bytes(encode_png(digits[0]))
    command = [sys.executable, "-m", "glowserve", "score", str(path), "--model", str(repository / "digits")]
    latin = os.environ | {"PYTHONIOENCODING": "latin-1"}
    ended = subprocess.run(command, capture_output=True, env=latin, timeout=120, check=True)
    assert rb"\u6570\u5b57.png" in ended.stdout
