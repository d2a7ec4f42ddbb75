"""The command line as a whole: its help, its exit codes, and what it says where something is missing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from glowserve_service.server import Server
from PIL import Image

from glowserve.cli import main

COMMANDS = ["train", "export", "evaluate", "serve", "score", "sample", "interpolate", "models", "demo"]


def python(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs a program in an interpreter of its own."""
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("arguments", [["--help"], *([command, "--help"] for command in COMMANDS)])
def test_help_is_there_for_every_command(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("usage: glowserve")
    assert printed.err == ""
    if arguments == ["--help"]:
        assert all(f"\n    {command}" in printed.out for command in COMMANDS)


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
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
def test_a_command_line_that_makes_no_sense_is_told_so(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert words in printed.err


def test_python_dash_m_is_the_same_command() -> None:
    command = [sys.executable, "-m", "glowserve", "--help"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 0
    assert ended.stdout.startswith("usage: glowserve")


def test_help_needs_nothing_that_is_slow_to_import() -> None:
    heavy = ["torch", "lightning", "onnx", "onnxruntime", "sklearn", "datasets", "prometheus_client"]
    program = f"""
import sys
from glowserve.cli import main
try:
    main(sys.argv[1:])
except SystemExit:
    pass
print([name for name in {heavy} if name in sys.modules], file=sys.stderr)
"""
    for arguments in (["--help"], ["score", "--help"], ["serve", "--help"]):
        assert python(program, *arguments).stderr.strip() == "[]"


MISSING = """
import sys
sys.modules[sys.argv[1]] = None
from glowserve.cli import main
sys.exit(main(sys.argv[2:]))
"""


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
    places = {
        "PICTURE": tmp_path / "picture.png",
        "OUT": tmp_path / "out",
        "MODEL": repository / "digits",
        "REPOSITORY": repository,
    }
    ended = python(MISSING, missing, *(str(places.get(argument, argument)) for argument in arguments))
    assert ended.returncode == 2
    assert ended.stderr == (
        f"glowserve: {arguments[0]} needs {missing}, which is not installed: pip install 'glowserve[{extra}]'\n"
    )


def test_asking_a_server_needs_no_extra(server: Server) -> None:
    program = """
import sys
for name in ("onnxruntime", "torch", "lightning", "onnx", "prometheus_client", "grpc_health", "service"):
    sys.modules[name] = None
from glowserve.cli import main
sys.exit(main(sys.argv[1:]))
"""
    ended = python(program, "models", "--server", f"127.0.0.1:{server.port}")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "digits" in ended.stdout


@pytest.mark.parametrize("command", [["score", "x.png"], ["sample", "--out", "x.png"], ["models"]])
def test_nobody_to_ask_is_told_so(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command) == 2
    printed = capsys.readouterr()
    assert printed.err == "glowserve: whom to ask? Give --server HOST:PORT or --model REPOSITORY/MODEL\n"


@pytest.mark.parametrize("command", [["score", "PICTURE"], ["sample", "--out", "OUT"], ["models"]])
def test_a_server_that_is_not_there_is_told_in_a_sentence(
    command: list[str], repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("L", (8, 8)).save(tmp_path / "picture.png")
    places = {"PICTURE": str(tmp_path / "picture.png"), "OUT": str(tmp_path / "out.png")}
    arguments = [places.get(argument, argument) for argument in command]
    assert main([*arguments, "--server", "127.0.0.1:1"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("glowserve: UNAVAILABLE: ")


@pytest.mark.parametrize("command", [["score", "PICTURE"], ["sample", "--out", "OUT"], ["models"]])
def test_a_model_that_is_not_there_is_told_in_a_sentence(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("L", (8, 8)).save(tmp_path / "picture.png")
    places = {"PICTURE": str(tmp_path / "picture.png"), "OUT": str(tmp_path / "out.png")}
    arguments = [places.get(argument, argument) for argument in command]
    assert main([*arguments, "--model", str(tmp_path / "nowhere")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"glowserve: model {tmp_path / 'nowhere'}: there is no bundle")
