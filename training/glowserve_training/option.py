"""Fields of configurations that users can set: the command line's flags are generated from them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import MISSING, field
from typing import Any


def option(help_text: str, default: Any = MISSING, *, choices: Sequence[str] = ()) -> Any:
    """A dataclass field that has a flag.

    Args:
        help_text: what the flag's help says.
        default: the field's default value; without one, the field is required.
        choices: the only values that the flag accepts.
    """
    return field(default=default, metadata={"help": help_text, "choices": tuple(choices)})


def require_at_least(minimum: int, **values: int) -> None:
    """Checks fields, given as NAME=value.

    Raises:
        ValueError: a value is below `minimum`.
    """
    for name, value in values.items():
        if value < minimum:
            raise ValueError(f"{name} is {value}; it must be {minimum} or more")


def require_positive(**values: float) -> None:
    """Checks fields, given as NAME=value.

    Raises:
        ValueError: a value is not a finite number above 0.
    """
    for name, value in values.items():
        if not (value > 0 and math.isfinite(value)):
            raise ValueError(f"{name} is {value}; it must be a positive number")


def require_choice(choices: Sequence[str], **values: str) -> None:
    """Checks fields, given as NAME=value.

    Raises:
        ValueError: a value is none of `choices`.
    """
    for name, value in values.items():
        if value not in choices:
            raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(choices)}")
