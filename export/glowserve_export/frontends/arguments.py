"""Reads the constructor arguments of a public implementation's model from JSON: no checkpoint contains them."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from glowserve.image_size import ImageSize
from glowserve.images import MODES
from glowserve_export.errors import ArgumentsError

_KINDS = {
    int: "a whole number, 1 or more",
    float: "a number",
    bool: "true or false",
    str: "a string",
    list: "a list of three whole numbers, 1 or more, in the order of the constructor",
}
_MAX_LEVELS = 12
_MAX_IMAGE_SIZE = 2**_MAX_LEVELS
_MAX_BYTES = 2**20
# The similarity, 0 to 1, from which an unknown name counts as a misspelt one.
_MISSPELT = 0.8


@dataclass(frozen=True, kw_only=True)
class Known:
    """The arguments of an implementation."""

    implementation: str
    """Its GitHub repository, the only allowed value of "implementation"."""

    kinds: Mapping[str, type]
    """The arguments that matter and their types: int (1 or more), float, bool, str, or list (a shape)."""

    optional: frozenset[str] = frozenset()
    """Those that make no difference to a trained model, or are only compared."""

    flags: Mapping[str, tuple[str, bool]] = field(default_factory=dict)
    """Flags of the training script that set an argument by another name: the argument, and whether the flag negates
    it."""

    defaults: Mapping[str, Any] = field(default_factory=dict)
    """The values of arguments that are not given and that no shape tells."""

    nullable: frozenset[str] = frozenset()
    """Those for which null means that they are not given."""

    section: str | None = None
    """The object in the JSON object that may hold the arguments."""


def read_arguments(path: Path, known: Known, inferred: Mapping[str, Any]) -> dict[str, Any]:
    """Reads and checks the arguments of a model: of its constructor or of its training script.

    What keys and shapes tell need not be given. Unknown arguments, such as a learning rate, are ignored, unless they
    look like a misspelt known one.

    Args:
        path: a JSON object.
        known: the arguments of the implementation.
        inferred: what keys and shapes of the checkpoint tell.

    Returns:
        All arguments of `known.kinds` that are given, inferred, or have a default. What is given comes first.

    Raises:
        ArgumentsError: an argument is missing, misspelt, contradicts another, or has the wrong type.
    """
    content = _read_object(path)
    found = content.pop("implementation", known.implementation)
    if found != known.implementation:
        raise ArgumentsError(
            f"{path}: implementation is {found!r}, and --from says that the checkpoint is of "
            f"{known.implementation!r}; check --from and --config"
        )
    given = _by_name(path, _with_section(path, content, known.section), known)
    arguments = {**known.defaults, **inferred, **given}
    for name, kind in known.kinds.items():
        if name not in arguments and name not in known.optional:
            raise ArgumentsError(
                f"{path}: argument {name!r} is missing; add the value that the model was built with, "
                f"{_KINDS[kind]}"
            )
    if arguments["n_bits"] > 8:
        raise ArgumentsError(f"{path}: n_bits is {arguments['n_bits']}; it must be 1 to 8")
    return arguments


def contradictions(arguments: Mapping[str, Any], inferred: Mapping[str, Any]) -> str:
    """The arguments that are not what keys and shapes tell, as sentences with a space before; "" if there are none."""
    return "".join(
        f" {name} is {json.dumps(arguments[name])}, and the checkpoint's keys and shapes tell {json.dumps(value)}."
        for name, value in inferred.items()
        if arguments[name] != value
    )


def _with_section(path: Path, content: Mapping[str, Any], section: str | None) -> dict[str, Any]:
    """The arguments, those of the section among the others."""
    if section is None or section not in content:
        return dict(content)
    inner = content[section]
    if not isinstance(inner, dict):
        raise ArgumentsError(f"{path}: {section} is {json.dumps(inner)}; it must be an object of arguments")
    outer = {name: value for name, value in content.items() if name != section}
    if twice := sorted(inner.keys() & outer.keys()):
        raise ArgumentsError(
            f"{path}: {twice[0]} is inside {section} and outside of it; leave one of them out"
        )
    return outer | inner


def _by_name(path: Path, content: Mapping[str, Any], known: Known) -> dict[str, Any]:
    """The given arguments that matter, checked."""
    given: dict[str, Any] = {}
    for written, value in content.items():
        name, negated = known.flags.get(written, (written, False))
        if name not in known.kinds:
            _check_spelling(path, written, known)
            continue
        kind = known.kinds[name]
        if value is None and name in known.nullable:
            continue
        if not _fits(value, kind):
            raise ArgumentsError(f"{path}: {written} is {json.dumps(value)}; it must be {_KINDS[kind]}")
        meant = not value if negated else value
        if given.setdefault(name, meant) != meant:
            raise ArgumentsError(
                f"{path}: {written} contradicts another argument, {name}; leave one of them out"
            )
    return given


def _check_spelling(path: Path, name: str, known: Known) -> None:
    names = [*known.kinds, *known.flags]
    if meant := difflib.get_close_matches(name, names, n=1, cutoff=_MISSPELT):
        raise ArgumentsError(
            f"{path}: {known.implementation} has no argument {name!r}; did you mean {meant[0]!r}? Its arguments are "
            f"{', '.join([*names, 'implementation'])}"
        )


def check_image(path: Path, size: ImageSize, channels: int, levels: int) -> None:
    """Raises ArgumentsError unless images have 1 to 4 channels and their size can be halved once for each level."""
    if channels not in MODES:
        raise ArgumentsError(f"{path}: images have {channels} channels; 1 to 4 are supported")
    if size.longer > _MAX_IMAGE_SIZE:
        raise ArgumentsError(
            f"{path}: images of {size} pixels are too large; a side may have at most {_MAX_IMAGE_SIZE}"
        )
    if levels > _MAX_LEVELS or size.halvings < levels:
        raise ArgumentsError(
            f"{path}: images of {size} pixels cannot be halved {levels} times, once for each "
            f"level; height and width must each be a multiple of {2 ** min(levels, _MAX_LEVELS)}: check image size and "
            "levels"
        )


def _read_object(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ArgumentsError(f"arguments {path}: there is no such file; give a JSON file with --config")
    if path.stat().st_size > _MAX_BYTES:
        raise ArgumentsError(
            f"arguments {path} are larger than {_MAX_BYTES} bytes; give a JSON file with --config"
        )
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:  # neither JSON nor Unicode, or nested too deep
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
