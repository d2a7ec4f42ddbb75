"""`glowserve train`: its flags are generated from the configuration's dataclasses."""

from __future__ import annotations

import argparse
from dataclasses import fields
from typing import Any

import pytest
from glowserve_training.config import DataConfig, GlowConfig, RunConfig
from glowserve_training.hardware import Hardware
from glowserve_training.presets import DERIVED_DEFAULTS, run_config

from glowserve.cli import main, train

# The flags with the values that they accept; users' scripts depend on them.
FLAGS = {
    **dict.fromkeys(("data", "out", "image-size"), "TEXT"),
    **dict.fromkeys(("channels", "n-bits", "levels", "steps-per-level", "width"), "INT"),
    **dict.fromkeys(
        ("steps", "batch-size", "patience", "seed", "split-seed", "devices", "nodes", "extend-to"), "INT"
    ),
    **dict.fromkeys(("learning-rate", "weight-decay", "average-decay"), "FLOAT"),
    **dict.fromkeys(("compile", "checkpoint-activations", "conditional", "json"), "NONE"),
    **dict.fromkeys(("coupling-actnorm", "no-coupling-actnorm"), "NONE"),
    "size": ("small", "paper"),
    "coupling": ("affine", "additive", "spline"),
    "parametrization": ("qlu", "lu", "orthogonal", "plain"),
    "preprocessing": ("centre", "logit"),
    "checkerboards": "INT",
    "coupling-scale": ("tanh", "sigmoid"),
    "dequantization": ("uniform", "variational"),
    "schedule": ("cosine", "constant"),
    "precision": ("32-true", "bf16-mixed"),
    "device": ("auto", "cpu", "cuda"),
    "fit": ("crop", "pad"),
    "label-column": "TEXT",
    "bits-used": (16, 12, 10),
}


@pytest.fixture
def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser()
    train.add_arguments(made)
    return made


def accepts(action: argparse.Action) -> Any:
    if action.choices is not None:
        return tuple(action.choices)
    if action.nargs == 0:
        return "NONE"
    return {int: "INT", float: "FLOAT"}.get(action.type, "TEXT")  # type: ignore[call-overload]


def test_the_flags_are_those_of_older_versions(parser: argparse.ArgumentParser) -> None:
    found = {
        flag.removeprefix("--"): accepts(action)
        for action in parser._actions
        for flag in action.option_strings
        if flag not in ("-h", "--help")
    }

    assert found == FLAGS


def test_the_help_states_the_default_of_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    text = " ".join(capsys.readouterr().out.split())

    for config in (GlowConfig, RunConfig, Hardware):
        for field in fields(config):
            if "help" in field.metadata and not isinstance(field.default, bool):
                default = DERIVED_DEFAULTS.get(field.name, field.default)
                assert f"{field.metadata['help']} (default: {default})" in text, field.name
    assert text.count("(default: by image size)") == 6


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], {}),
        (["--levels", "1", "--coupling", "additive"], {"levels": 1, "coupling": "additive"}),
        (["--no-coupling-actnorm", "--seed", "3"], {"coupling_actnorm": False, "seed": 3}),
        (["--learning-rate", "0.1", "--average-decay", "0"], {"learning_rate": 0.1, "average_decay": 0.0}),
    ],
)
def test_a_flag_sets_its_field_and_no_other(
    flags: list[str], expected: dict[str, Any], parser: argparse.ArgumentParser
) -> None:
    args = parser.parse_args(["--data", "digits", "--out", "runs/mine", *flags])

    given = {
        name: value
        for config in (GlowConfig, RunConfig)
        for name, value in train._given(args, config).items()
    }

    assert given == expected
    assert run_config("digits", **given) == run_config("digits", **expected)
    assert train._given(args, Hardware) == {}
    assert train._given(args, DataConfig) == {"data": "digits"}


@pytest.mark.parametrize("flags", [["--compile"], ["--checkpoint-activations"], ["--devices", "2"]])
def test_a_hardware_flag_changes_hardware_alone(flags: list[str], parser: argparse.ArgumentParser) -> None:
    args = parser.parse_args(["--data", "digits", "--out", "runs/mine", *flags])

    name = flags[0].removeprefix("--").replace("-", "_")
    assert train._given(args, Hardware) == {name: int(flags[1]) if len(flags) > 1 else True}
    assert train._given(args, RunConfig) == {}
