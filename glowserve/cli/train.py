"""`glowserve train`. Its flags, but for --out, --extend-to and --json, are the fields of the training configuration."""

from __future__ import annotations

import argparse
import json
import sys
import typing
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glowserve_training.config import DataConfig, GlowConfig, RunConfig
from glowserve_training.hardware import Hardware
from glowserve_training.presets import DEFAULT_SIZE, DERIVED_DEFAULTS, SIZES

from glowserve.cli.failure import Failure
from glowserve.image_size import ImageSize
from glowserve.images import BITS_USED, FITS, Preparation
from glowserve.output import printable

if TYPE_CHECKING:
    from glowserve_training.directory import RunDirectory


def _image_size(text: str) -> ImageSize:
    try:
        return ImageSize.of(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


_KINDS: dict[type, tuple[Callable[[str], Any], str]] = {
    int: (int, "N"),
    float: (float, "X"),
    ImageSize: (_image_size, "HEIGHTxWIDTH"),
}
"""How values of a type are read, and what stands for them in the help."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds a flag for each field that is an `option`; None stands for its default."""
    (data, *other_data) = _options(DataConfig)
    parser.add_argument("--data", help=f"{data.metadata['help']} (default: that of RUN_DIR's run)")
    parser.add_argument(
        "--out", required=True, type=Path, metavar="RUN_DIR", help="folder for model.ckpt and logs"
    )
    parser.add_argument(
        "--extend-to",
        type=int,
        metavar="STEPS",
        help="extend RUN_DIR's finished run to STEPS steps in all, with a new warm-up and cosine; "
        "--patience is then that of the extension, and 0 by default",
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    sizes = "; ".join(f"{name}: {text}" for name, text in SIZES.items())
    model = parser.add_argument_group("model")
    model.add_argument("--size", choices=tuple(SIZES), help=f"{sizes} (default: {DEFAULT_SIZE})")
    _add_flags(model, GlowConfig, _options(GlowConfig), DERIVED_DEFAULTS)
    model.add_argument(
        "--conditional",
        action="store_true",
        default=None,
        help="learn a prior for each class of the images' labels: sample a class, score given a class, classify",
    )
    model.add_argument(
        "--label-column",
        metavar="NAME",
        help="with --conditional: the column of labels in the data, of labels.csv or of an .npz file (default: the "
        "only one, or the folders of classes)",
    )
    training = parser.add_argument_group("training")
    _add_flags(training, RunConfig, _options(RunConfig), DERIVED_DEFAULTS)
    _add_flags(training, DataConfig, other_data, {})
    _add_preparation_flags(parser.add_argument_group("pictures"))
    _add_flags(parser.add_argument_group("hardware"), Hardware, _options(Hardware), {})


def _add_preparation_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--fit",
        choices=FITS,
        help="how a picture gets the model's proportions: crop takes its middle, pad keeps all of it on a background "
        f"(default: {Preparation.fit})",
    )
    group.add_argument(
        "--bits-used",
        type=int,
        choices=BITS_USED,
        help="the bits that 16-bit grey pictures use; white is 2^bits - 1 "
        f"(default: {Preparation.bits_used}, the full range)",
    )


def run(args: argparse.Namespace) -> int:
    """Trains, resumes an interrupted run, or extends a finished one."""
    from glowserve_training.checkpoint import load_checkpoint
    from glowserve_training.directory import RunDirectory
    from glowserve_training.errors import DivergedError, TrainingError
    from glowserve_training.run import is_rank_zero, train

    directory = RunDirectory(args.out)
    try:
        config = _config(args, directory)
        if directory.is_finished(config):
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
        steps = {"steps": record.steps, "best_step": record.best_step}
        print(json.dumps({"checkpoint": str(path), **steps, **record.metrics}))
    else:
        kept = f" (weights of step {record.best_step} of {record.steps})" if record.best_step else ""
        accuracy = record.metrics.get("test_accuracy")
        right = "" if accuracy is None else f", the most probable class is right for {accuracy:.1%} of them"
        bits = f"{record.metrics['test_bits_per_dim']:.3f} bits/dim on test images"
        print(printable(f"{path}: {bits}{right}{kept}"))
        print(printable(f"next: glowserve export {path} models/NAME"))
    return 0


def _config(args: argparse.Namespace, directory: RunDirectory) -> RunConfig:
    """The run's configuration: what the directory's run has, whatever defaults are now, with the given values."""
    from glowserve_training.presets import changed_config, run_config

    given = {**_given(args, DataConfig), **_given(args, GlowConfig), **_given(args, RunConfig)}
    for name in ("size", "fit", "bits_used", "conditional", "label_column"):
        if (value := getattr(args, name)) is not None:
            given[name] = value
    known = directory.config()
    if known is None:
        if not args.data:
            raise Failure(f"{args.out} has no run to resume: give --data to begin one", 2)
        if args.extend_to is not None:
            raise Failure(f"{args.out} has no run to extend: leave --extend-to out to begin one", 2)
        return run_config(**given)
    if args.extend_to is not None:
        known = directory.extended(known, args.extend_to, given.pop("patience", 0))
    return changed_config(known, **given)


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
        text = f"{field.metadata['help']} (default: {_text(default)})".replace("%", "%%")
        if kind is bool:
            action = argparse.BooleanOptionalAction if field.default else "store_true"
            parser.add_argument(flag, action=action, default=None, help=text)
        elif choices := field.metadata["choices"]:
            parser.add_argument(flag, choices=choices, help=text)
        else:
            read, metavar = _KINDS[kind]
            parser.add_argument(flag, type=read, metavar=metavar, help=text)


def _text(default: object) -> str:
    assert default is not MISSING
    return {True: "yes", False: "no"}[default] if isinstance(default, bool) else str(default)


def _given(args: argparse.Namespace, config: type) -> dict[str, Any]:
    """The fields that have a flag on the command line."""
    values = {field.name: getattr(args, field.name) for field in _options(config)}
    return {name: value for name, value in values.items() if value is not None}
