"""`glowserve serve`: its flags, its variables and its exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from glowserve_service.config import ServiceConfig, variable

from glowserve.cli import main


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for setting in fields(ServiceConfig):
        monkeypatch.delenv(variable(setting), raising=False)


def test_the_help_has_every_setting_with_its_flag_variable_and_default(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        main(["serve", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for setting in fields(ServiceConfig):
        assert f"--{setting.name.replace('_', '-')} " in text
        assert f"${variable(setting)})" in text
        assert setting.metadata["help"] in text


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--port", "65536"], "port is 65536; it must be a whole number from 0 to 65535"),
        (["--metrics-port", "-1"], "metrics_port is -1; it must be a whole number from 0 to 65535"),
        (["--device", "tpu"], "device is 'tpu'; it must be one of auto, cpu, cuda, tensorrt"),
        (["--instances", "-1"], "instances is -1; it must be a whole number from 0 to 1024"),
        (["--drain-seconds", "nan"], "drain_seconds is nan; it must be a number from 0 to 1000000"),
        (["--max-queue-delay-ms", "inf"], "max_queue_delay_ms is inf; it must be a number from 0 to 1000000"),
        (["--max-message-mib", "4096"], "max_message_mib is 4096; it must be a whole number from 1 to 2047"),
        (
            ["--max-queue-size", "255"],
            "max_queue_size is 255; it must be at least max_images_per_call, 256, or such a call could never run",
        ),
    ],
)
def test_a_flag_out_of_range_is_refused_with_a_sentence(
    flags: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", "--repository", "models", *flags]) == 2
    assert capsys.readouterr().err == f"glowserve: {sentence}\n"


@pytest.mark.parametrize("flags", [["--port", "http"], ["--no-such-flag"]])
def test_a_flag_that_cannot_be_parsed_is_refused_with_the_usage(
    flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["serve", "--repository", "models", *flags])
    assert ended.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("usage: glowserve")
    assert ": error: " in lines[-1]
    assert flags[0] in lines[-1]


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("GRPC_PORT", "http", "$GLOWSERVE_GRPC_PORT is 'http'; it must be of type int"),
        ("GRPC_PORT", "80.5", "$GLOWSERVE_GRPC_PORT is '80.5'; it must be of type int"),
        ("DRAIN_SECONDS", "soon", "$GLOWSERVE_DRAIN_SECONDS is 'soon'; it must be of type float"),
        ("GRPC_PORT", "-1", "port is -1; it must be a whole number from 0 to 65535 ($GLOWSERVE_GRPC_PORT)"),
        ("DEVICE", "tpu", "device is 'tpu'; it must be one of auto, cpu, cuda, tensorrt ($GLOWSERVE_DEVICE)"),
    ],
)
def test_a_wrong_variable_is_refused_with_a_sentence(
    monkeypatch: pytest.MonkeyPatch, name: str, text: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(f"GLOWSERVE_{name}", text)
    assert main(["serve", "--repository", "models"]) == 2
    assert capsys.readouterr().err == f"glowserve: {sentence}\n"


def test_a_flag_takes_precedence_over_its_variable(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GLOWSERVE_DEVICE", "abacus")
    monkeypatch.setenv("GLOWSERVE_REPOSITORY", str(tmp_path))
    assert main(["serve", "--device", "tpu"]) == 2
    assert "device is 'tpu'" in capsys.readouterr().err


def test_an_empty_variable_counts_as_unset(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GLOWSERVE_GRPC_PORT", "")
    monkeypatch.setenv("GLOWSERVE_REPOSITORY", "")
    assert main(["serve", "--port", "65536"]) == 2
    assert "--repository (or $GLOWSERVE_REPOSITORY) is missing" in capsys.readouterr().err


def test_a_bug_ends_the_process_with_code_1_and_its_traceback_in_the_log() -> None:
    program = Path(__file__).parents[1] / "service" / "programs" / "serve_with_fault.py"
    command = [sys.executable, str(program), "serve", "--repository", "models", "--log-format", "json"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 1
    (line,) = [json.loads(line) for line in ended.stderr.splitlines()]
    assert line["message"] == "the service failed"
    assert line["exception"].endswith("ArithmeticError: a bug of ours")
