"""The command line as a whole: help, exit codes, and what it imports."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from glowserve_service.server import Server

from glowserve.cli import main
from glowserve.images import UInt8Array, encode_png

Printed = pytest.CaptureFixture[str]

COMMANDS = [
    *("train", "export", "calibrate", "attributes", "verify", "inspect", "evaluate", "serve"),
    *("score", "sample", "interpolate", "manipulate", "models", "demo"),
]
IMPORTS = Path(__file__).parent / "programs" / "imports_of_a_command.py"
WITHOUT = Path(__file__).parents[1] / "packaging" / "programs" / "command_line.py"
SLOW = ["torch", "lightning", "onnx", "onnxruntime", "sklearn", "datasets", "prometheus_client"]


def run(*command: object) -> subprocess.CompletedProcess[str]:
    """Runs Python with these arguments."""
    arguments = [sys.executable, *map(str, command)]
    return subprocess.run(arguments, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("arguments", [["--help"], *([command, "--help"] for command in COMMANDS)])
def test_every_command_has_help(arguments: list[str], capsys: Printed) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("usage: glowserve")
    assert printed.err == ""
    if arguments == ["--help"]:
        assert all(f"\n    {command}" in printed.out for command in COMMANDS)


def test_the_version_is_printed(capsys: Printed) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out.count(".") == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "required: COMMAND"),
        (["paint"], "invalid choice: 'paint'"),
        (["models", "--colour"], "unrecognized arguments: --colour"),
        (["score"], "required: FILE"),
        (["sample"], "required: --out"),
        (["sample", "--n", "many", "--out", "x.png"], "argument --n: invalid int value: 'many'"),
        (["serve", "--port", "http"], "argument --port: invalid int value: 'http'"),
        (["serve", "--drain-seconds", "soon"], "argument --drain-seconds: invalid float value: 'soon'"),
    ],
)
def test_wrong_arguments_end_with_exit_code_2_and_a_message(
    arguments: list[str], words: str, capsys: Printed
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert words in printed.err


def test_python_dash_m_runs_the_same_command() -> None:
    ended = run("-m", "glowserve", "--help")
    assert ended.returncode == 0
    assert ended.stdout.startswith("usage: glowserve")


@pytest.mark.parametrize("arguments", [["--help"], ["score", "--help"], ["serve", "--help"]])
def test_help_imports_no_slow_package(arguments: list[str]) -> None:
    ended = run(IMPORTS, ",".join(SLOW), *arguments)
    assert "usage: glowserve" in ended.stderr
    assert json.loads(ended.stdout) == []


@pytest.mark.parametrize(
    ("missing", "arguments", "extra"),
    [
        ("onnxruntime", ["score", "PICTURE", "--model", "MODEL"], "cpu"),
        ("onnxruntime", ["sample", "--model", "MODEL", "--out", "OUT"], "cpu"),
        ("onnxruntime", ["models", "--model", "MODEL"], "cpu"),
        ("onnxruntime", ["serve", "--repository", "REPOSITORY"], "cpu"),
        ("prometheus_client", ["serve", "--repository", "REPOSITORY"], "cpu"),
        ("torch", ["train", "--data", "digits", "--out", "OUT"], "train,cpu"),
        ("torch", ["export", "OUT", "MODEL"], "train,cpu"),
        ("torch", ["evaluate", "OUT"], "train,cpu"),
        ("onnxruntime", ["evaluate", "MODEL"], "train,cpu"),
    ],
)
def test_a_missing_extra_is_named(
    missing: str, arguments: list[str], extra: str, repository: Path, tmp_path: Path
) -> None:
    (tmp_path / "picture.png").touch()
    paths = {
        "PICTURE": tmp_path / "picture.png",
        "OUT": tmp_path / "out",
        "MODEL": repository / "digits",
        "REPOSITORY": repository,
    }
    ended = run(WITHOUT, missing, *(paths.get(argument, argument) for argument in arguments))
    assert ended.returncode == 2
    assert ended.stderr == (
        f"glowserve: {arguments[0]} needs {missing}, which is not installed: pip install 'glowserve[{extra}]'\n"
    )


def test_a_command_with_a_server_needs_no_extra(server: Server) -> None:
    missing = [*SLOW, "grpc_health", "grpc_status", "glowserve_service", "glowserve.runtime"]
    ended = run(WITHOUT, ",".join(missing), "models", "--server", f"127.0.0.1:{server.port}")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "digits" in ended.stdout


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_command_works_where_standard_streams_are_closed(
    closed: str, repository: Path, digits: UInt8Array, tmp_path: Path
) -> None:
    pictures = [tmp_path / f"{i}.png" for i in range(2)]
    for path, image in zip(pictures, digits, strict=False):
        path.write_bytes(encode_png(image))
    shell = ["sh", "-c", f'exec "$@" {closed}', "sh", sys.executable, "-m", "glowserve"]
    command = [*shell, "score", "--model", repository / "digits", *pictures]
    assert subprocess.run(command, timeout=120, check=False).returncode == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_under_standard_output_is_a_sentence(repository: Path) -> None:
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(
            [sys.executable, "-m", "glowserve", "inspect", repository / "digits"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=120,
            check=False,
        )
    assert (ended.returncode, ended.stderr) == (1, "glowserve: [Errno 28] No space left on device\n")
