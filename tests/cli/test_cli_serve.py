"""`glowserve serve`: its flags and variables; what it does with them is shown beside the service."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest
from glowserve_service.config import ServiceConfig, variable

from glowserve.cli import main


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for setting in fields(ServiceConfig):
        monkeypatch.delenv(variable(setting), raising=False)


def test_every_setting_has_a_flag_a_variable_and_its_default_in_the_help(
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
        (["--port", "65536"], "port is 65536; it must lie in 0 to 65535"),
        (["--metrics-port", "-1"], "metrics_port is -1; it must lie in 0 to 65535"),
        (["--device", "tpu"], "device is 'tpu'; it must be one of auto, cpu, cuda, tensorrt"),
        (["--instances", "-1"], "instances is -1; it must be 0 or more"),
        (["--drain-seconds", "nan"], "drain_seconds is nan; it must be 0 or more"),
        (["--max-queue-delay-ms", "inf"], "max_queue_delay_ms is inf; it must be 0 or more"),
        (["--max-message-mib", "4096"], "max_message_mib is 4096; gRPC takes at most 2047"),
        (
            ["--max-queue-size", "255"],
            "max_queue_size is 255; it must be at least max_images_per_call, 256, or such a call could never run",
        ),
    ],
)
def test_a_flag_out_of_range_is_told_in_a_sentence(
    flags: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", "--repository", "models", *flags]) == 2
    assert capsys.readouterr().err == f"glowserve: {sentence}\n"


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("GRPC_PORT", "http", "$GLOWSERVE_GRPC_PORT is 'http'; it must be of type int"),
        ("GRPC_PORT", "80.5", "$GLOWSERVE_GRPC_PORT is '80.5'; it must be of type int"),
        ("DRAIN_SECONDS", "soon", "$GLOWSERVE_DRAIN_SECONDS is 'soon'; it must be of type float"),
        ("GRPC_PORT", "-1", "port is -1; it must lie in 0 to 65535"),
        ("DEVICE", "tpu", "device is 'tpu'; it must be one of auto, cpu, cuda, tensorrt"),
    ],
)
def test_a_variable_that_is_no_value_is_told_in_a_sentence(
    monkeypatch: pytest.MonkeyPatch, name: str, text: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(f"GLOWSERVE_{name}", text)
    assert main(["serve", "--repository", "models"]) == 2
    assert capsys.readouterr().err == f"glowserve: {sentence}\n"


def test_a_flag_counts_for_more_than_a_variable(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GLOWSERVE_DEVICE", "abacus")
    monkeypatch.setenv("GLOWSERVE_REPOSITORY", str(tmp_path))
    assert main(["serve", "--device", "tpu"]) == 2
    assert "device is 'tpu'" in capsys.readouterr().err


def test_an_empty_variable_is_no_value(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GLOWSERVE_GRPC_PORT", "")
    monkeypatch.setenv("GLOWSERVE_REPOSITORY", "")
    assert main(["serve", "--port", "65536"]) == 2
    assert "--repository (or $GLOWSERVE_REPOSITORY) is missing" in capsys.readouterr().err
