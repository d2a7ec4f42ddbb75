"""Reads the constructor arguments of a public implementation's model from JSON: no checkpoint contains them."""

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
    """Reads and checks constructor arguments.

    The JSON object also has "n_bits", 1 to 8, and optionally "implementation".

    Args:
        path: a JSON object.
        implementation: the only allowed value of "implementation".
        required: the constructor arguments and their types: int (1 or more), float, bool, str, or list (a shape).
        n_bits: the default of "n_bits"; None if it is required.

    Returns:
        The arguments and "n_bits".

    Raises:
        ArgumentsError: an argument is missing, unknown, or has the wrong type.
    """
    arguments = _read_object(path)
    found = arguments.pop("implementation", implementation)
    if found != implementation:
        raise ArgumentsError(
            f"{path}: implementation is {found!r}, and --from says that the checkpoint is of {implementation!r}; check "
            "--from and --config"
        )
    known = {**required, "n_bits": int}
    for name in arguments:
        if name not in known:
            raise ArgumentsError(
                f"{path}: {implementation} has no argument {name!r}; its arguments are {_listed(known)}"
            )
    if n_bits is not None:
        arguments.setdefault("n_bits", n_bits)
    for name, kind in known.items():
        if name not in arguments:
            raise ArgumentsError(
                f"{path}: argument {name!r} is missing; add the value that the model was built with, "
                f"{_KINDS[kind]}"
            )
        if not _fits(arguments[name], kind):
            raise ArgumentsError(
                f"{path}: {name} is {json.dumps(arguments[name])}; it must be {_KINDS[kind]}"
            )
    if arguments["n_bits"] > 8:
        raise ArgumentsError(f"{path}: n_bits is {arguments['n_bits']}; it must be 1 to 8")
    return arguments


def check_image(path: Path, image_size: int, channels: int, levels: int) -> None:
    """Raises ArgumentsError unless images are grey or RGB and their size can be halved once for each level."""
    if channels not in (1, 3):
        raise ArgumentsError(f"{path}: images have {channels} channels; 1 (grey) and 3 (RGB) are supported")
    if image_size % 2**levels:
        raise ArgumentsError(
            f"{path}: images of {image_size} x {image_size} pixels cannot be halved {levels} times, once for each "
            f"level; the size must be a multiple of {2**levels}: check image size and levels"
        )


def _read_object(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ArgumentsError(f"arguments {path}: there is no such file; give a JSON file with --config")
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:  # neither JSON nor Unicode
        raise ArgumentsError(f"arguments {path} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise ArgumentsError(f"arguments {path} are not a JSON object; write {{NAME: VALUE, ...}}")
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
