"""`glowserve models`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from glowserve_service.server import Server

from glowserve.cli import main
from tests.servers import RunServer

DIGITS: dict[str, object] = {
    "name": "digits",
    "version": 1,
    "height": 8,
    "width": 8,
    "channels": 1,
    "n_bits": 4,
    "state": "SERVING",
    "reason": "",
    "attributes": [],
    "classes": [],
}


@pytest.fixture(params=["model", "server"])
def target(request: pytest.FixtureRequest, server: Server, repository: Path) -> list[str]:
    """The flags that select the shared model, as a bundle and on a server."""
    addresses = {"model": str(repository / "digits"), "server": f"127.0.0.1:{server.port}"}
    return [f"--{request.param}", addresses[request.param]]


def test_models_are_listed_as_a_table(target: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", *target]) == 0
    header, line = capsys.readouterr().out.splitlines()
    assert header.split() == ["model", "version", "state", "image"]
    assert line.split() == ["digits", "1", "SERVING", "8", "x", "8", "grey,", "4", "bits"]


def test_models_are_listed_as_json(target: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--json", *target]) == 0
    assert json.loads(capsys.readouterr().out) == [DIGITS]


def test_a_server_with_two_models_lists_both_or_the_named_one(
    run_server: RunServer, repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("digits", "other"):
        shutil.copytree(repository / "digits" / "1", tmp_path / name / "1")
    with run_server(repository=tmp_path) as server:
        address = ["--server", f"127.0.0.1:{server.port}"]
        assert main(["models", "--json", *address]) == 0
        assert json.loads(capsys.readouterr().out) == [DIGITS, DIGITS | {"name": "other"}]
        assert main(["models", "--json", *address, "--model", "other"]) == 0
        assert json.loads(capsys.readouterr().out) == [DIGITS | {"name": "other"}]
        out = ["--out", str(tmp_path / "x.png"), "--n", "2", "--temperature", "0"]
        assert main(["sample", *out, *address]) == 1
        said = capsys.readouterr().err
        assert "model.name is empty and there are several models: digits version 1, other version 1; " in said
        assert said.endswith("choose one with --model NAME\n")
        assert main(["sample", *out, *address, "--model", "other"]) == 0


def test_a_model_that_the_server_does_not_have_is_named(
    server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["models", "--server", f"127.0.0.1:{server.port}", "--model", "nobody"]) == 1
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "glowserve: model 'nobody' is not served there\n")


def test_a_refused_version_is_listed_with_its_reason(
    run_server: RunServer, repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for version in ("1", "2"):
        shutil.copytree(repository / "digits" / "1", tmp_path / "digits" / version)
    (tmp_path / "digits" / "2" / "forward.onnx").write_bytes(b"")
    with run_server(repository=tmp_path) as server:
        assert main(["models", "--server", f"127.0.0.1:{server.port}"]) == 0
    _, served, refused, reason = capsys.readouterr().out.splitlines()
    assert served.split()[:3] == ["digits", "1", "SERVING"]
    assert refused.split() == ["digits", "2", "REFUSED", "-"]
    assert "forward.onnx" in reason
