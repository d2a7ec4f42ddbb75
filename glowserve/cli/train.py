"""`glowserve train`. Its flags, except for --out and --json, are the fields of the training configuration."""

from __future__ import annotations

import argparse
import json
import sys
import typing
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any

from glowserve_training.config import DataConfig, GlowConfig, RunConfig
from glowserve_training.hardware import Hardware
from glowserve_training.presets import DEFAULT_SIZE, DERIVED_DEFAULTS, SIZES

from glowserve.cli.failure import Failure
from glowserve.output import printable

_METAVARS = {int: "N", float: "X"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds a flag for each field that is an `option`; None stands for its default."""
    (data, *other_data) = _options(DataConfig)
    parser.add_argument("--data", required=True, help=data.metadata["help"])
    parser.add_argument(
        "--out", required=True, type=Path, metavar="RUN_DIR", help="folder for model.ckpt and logs"
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    sizes = "; ".join(f"{name}: {text}" for name, text in SIZES.items())
    model = parser.add_argument_group("model")
    model.add_argument(
        "--size", choices=tuple(SIZES), default=DEFAULT_SIZE, help=f"{sizes} (default: {DEFAULT_SIZE})"
    )
    _add_flags(model, GlowConfig, _options(GlowConfig), DERIVED_DEFAULTS)
    training = parser.add_argument_group("training")
    _add_flags(training, RunConfig, _options(RunConfig), DERIVED_DEFAULTS)
    _add_flags(training, DataConfig, other_data, {})
    _add_flags(parser.add_argument_group("hardware"), Hardware, _options(Hardware), {})


def run(args: argparse.Namespace) -> int:
    """Trains, or resumes an interrupted run."""
    from glowserve_training.checkpoint import load_checkpoint
    from glowserve_training.directory import RunDirectory
    from glowserve_training.errors import DivergedError, TrainingError
    from glowserve_training.presets import run_config
    from glowserve_training.run import is_rank_zero, train

    directory = RunDirectory(args.out)
    try:
        config = run_config(
            size=args.size,
            **_given(args, DataConfig),
            **directory.image_shape() | _given(args, GlowConfig),  # whatever the data looks like by now
            **_given(args, RunConfig),
        )
        if directory.result.exists():
            print(printable(f"{args.out} has a finished run: nothing to do"), file=sys.stderr)
        path = train(config, args.out, hardware=Hardware(**_given(args, Hardware)))
        if not is_rank_zero():
            return 0
        record = load_checkpoint(path).training
    except DivergedError as error:
        raise Failure(error, 1) from error
    except (TrainingError, ValueError, OSError) as error:
        raise Failure(error, 2) from error
    if record.metrics["test_bits_per_dim"] > config.model.n_bits:
        print(
            "glowserve: the model is worse than a uniform distribution: train longer, or with a lower --learning-rate",
            file=sys.stderr,
        )
    if args.json:
        print(json.dumps({"checkpoint": str(path), "steps": record.steps, **record.metrics}))
    else:
        print(printable(f"{path}: {record.metrics['test_bits_per_dim']:.3f} bits/dim on test images"))
        print(printable(f"next: glowserve export {path} models/NAME"))
    return 0


def _options(config: type) -> list[Field[Any]]:
    """The fields of a configuration that have flags."""
    return [field for field in fields(config) if "help" in field.metadata]


def _add_flags(
    parser: argparse._ArgumentGroup, config: type, options: list[Field[Any]], derived: Mapping[str, str]
) -> None:
    kinds = typing.get_type_hints(config)
    for field in options:
        flag, kind = f"--{field.name.replace('_', '-')}", kinds[field.name]
        default = derived.get(field.name, field.default)
        text = f"{field.metadata['help']} (default: {_text(default)})"
        if kind is bool:
            action = argparse.BooleanOptionalAction if field.default else "store_true"
            parser.add_argument(flag, action=action, default=None, help=text)
        elif choices := field.metadata["choices"]:
            parser.add_argument(flag, choices=choices, help=text)
        else:
            parser.add_argument(flag, type=kind, metavar=_METAVARS[kind], help=text)


def _text(default: object) -> str:
    assert default is not MISSING
    return {True: "yes", False: "no"}[default] if isinstance(default, bool) else str(default)


def _given(args: argparse.Namespace, config: type) -> dict[str, Any]:
    """The fields that have a flag on the command line."""
    values = {field.name: getattr(args, field.name) for field in _options(config)}
    return {name: value for name, value in values.items() if value is not None}
