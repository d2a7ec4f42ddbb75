"""The arguments that a public Glow was built with, as JSON: the checkpoint alone does not say them all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from glowserve_export.errors import ArgumentsError

_KINDS = {
    int: "a whole number, 1 or more",
    float: "a number",
    bool: "true or false",
    str: "a string",
    list: "a list [H, W, C] of whole numbers, 1 or more",
}


def read_arguments(
    path: Path, implementation: str, required: Mapping[str, type], *, n_bits: int | None = None
) -> dict[str, Any]:
    """Reads the arguments of a model's constructor.

    Besides them there is "n_bits", 1 to 8, of which the checkpoint says nothing, and there may be "implementation".

    Args:
        path: a JSON object.
        implementation: what "implementation" must be, if it is there.
        required: the other arguments, each with its type: int (1 or more), float, bool, str, or list (a shape).
        n_bits: what "n_bits" is if it is left out; None if it may not be, since the implementation has it as a flag.

    Raises:
        ArgumentsError: one is missing, unknown, or not of its type.
    """
    arguments = _read_object(path)
    found = arguments.pop("implementation", implementation)
    if found != implementation:
        raise ArgumentsError(
            f"{path}: these are the arguments of implementation {found!r} and the checkpoint is to be one of "
            f"{implementation!r}; check --from and --config"
        )
    known = {**required, "n_bits": int}
    for name in arguments:
        if name not in known:
            raise ArgumentsError(
                f"{path}: {name!r} is no argument of {implementation}; known are {_listed(known)}"
            )
    if n_bits is not None:
        arguments.setdefault("n_bits", n_bits)
    for name, kind in known.items():
        if name not in arguments:
            raise ArgumentsError(
                f"{path}: argument {name!r} is missing; add it, {_KINDS[kind]}, as the model was built with"
            )
        if not _fits(arguments[name], kind):
            raise ArgumentsError(
                f"{path}: {name} is {json.dumps(arguments[name])}; it must be {_KINDS[kind]}"
            )
    if arguments["n_bits"] > 8:
        raise ArgumentsError(f"{path}: n_bits is {arguments['n_bits']}; it must lie in 1 to 8")
    return arguments


def check_image(path: Path, image_size: int, channels: int, levels: int) -> None:
    """Raises ArgumentsError unless images are grey or RGB and can be halved once a level."""
    if channels not in (1, 3):
        raise ArgumentsError(
            f"{path}: the model is of images with {channels} channels; 1 (grey) and 3 (RGB) are supported"
        )
    if image_size % 2**levels:
        raise ArgumentsError(
            f"{path}: images of {image_size} x {image_size} pixels cannot be halved {levels} times; their size must "
            f"be a multiple of {2**levels}: check image size and levels"
        )


def _read_object(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ArgumentsError(f"arguments {path}: there is no such file; give a JSON file with --config")
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:  # neither JSON nor Unicode
        raise ArgumentsError(f"arguments {path} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise ArgumentsError(f"arguments {path} hold no JSON object; write {{NAME: VALUE, ...}}")
    return content


def _fits(value: Any, kind: type) -> bool:
    if kind is float:
        return type(value) in (int, float)
    if kind is list:
        return type(value) is list and len(value) == 3 and all(_fits(length, int) for length in value)
    if kind is int:
        return type(value) is int and value >= 1
    return type(value) is kind


def _listed(names: Mapping[str, type]) -> str:
    return ", ".join([*names, "implementation"])
