"""The target of a command: none, one that cannot be reached, and one that cannot be opened."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from glowserve.cli import main

Printed = pytest.CaptureFixture[str]


@pytest.fixture(params=["score", "sample", "interpolate", "manipulate", "models"])
def command(request: pytest.FixtureRequest, tmp_path: Path) -> list[str]:
    """A command with all of its arguments but the target."""
    picture, out = str(tmp_path / "picture.png"), str(tmp_path / "out.png")
    Image.new("L", (8, 8)).save(picture)
    return {
        "score": ["score", picture],
        "sample": ["sample", "--out", out],
        "interpolate": ["interpolate", picture, picture, "--out", out],
        "manipulate": ["manipulate", picture, "--attribute", "bright", "--out", out],
        "models": ["models"],
    }[request.param]


def failure(arguments: list[str], printed: Printed) -> tuple[int, str]:
    """The exit code and the message of a command that prints nothing else."""
    code = main(arguments)
    (line,) = printed.readouterr().err.splitlines()
    return code, line.removeprefix("glowserve: ")


def test_a_command_without_a_target_names_the_flags(command: list[str], capsys: Printed) -> None:
    expected = 2, "no target: pass --server HOST:PORT or --model REPOSITORY/MODEL"
    assert failure(command, capsys) == expected


def test_a_server_that_cannot_be_reached_is_unavailable(command: list[str], capsys: Printed) -> None:
    code, message = failure([*command, "--server", "127.0.0.1:1"], capsys)
    assert code == 1
    assert message.startswith("UNAVAILABLE: ")


def test_a_folder_without_a_bundle_is_named(command: list[str], tmp_path: Path, capsys: Printed) -> None:
    code, message = failure([*command, "--model", str(tmp_path / "nowhere")], capsys)
    assert code == 2
    assert message.startswith(f"model {tmp_path / 'nowhere'}: there is no bundle")


def test_a_missing_token_file_is_named(command: list[str], tmp_path: Path, capsys: Printed) -> None:
    file = tmp_path / "token"
    arguments = [*command, "--server", "127.0.0.1:1", "--token-file", str(file)]
    expected = 2, f"token file {file} cannot be read: No such file or directory"
    assert failure(arguments, capsys) == expected


def test_credentials_that_cannot_be_used_are_named(
    command: list[str], tmp_path: Path, capsys: Printed
) -> None:
    arguments = [*command, "--server", "127.0.0.1:1", "--ca", str(tmp_path / "ca.pem")]
    code, message = failure(arguments, capsys)
    assert code == 2
    assert message == f"certificate authority {tmp_path / 'ca.pem'} cannot be read: No such file or directory"
