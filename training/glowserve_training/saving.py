"""Writing what torch holds to a file, whole or not at all."""

from __future__ import annotations

from pathlib import Path

import torch

from glowserve.files import atomic_write
from glowserve_training.errors import RunError


def save(content: object, path: Path, what: str) -> None:
    """Writes `content` to `path`; the folder is made if needed.

    Raises:
        RunError: it cannot be written; whatever `path` held before is untouched. The sentence calls it `what`.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            torch.save(content, file)
    except (OSError, RuntimeError) as error:  # torch wraps what the file system says
        raise RunError(
            f"{what} could not be written to {path}: {_reason(error)}. Make room, and the same command goes on from "
            "the last state that was written whole"
        ) from error


def _reason(error: BaseException) -> str:
    """What the file system said, through whatever it was wrapped in."""
    while not isinstance(error, OSError) and (inner := error.__cause__ or error.__context__):
        error = inner
    return error.strerror or str(error) if isinstance(error, OSError) else str(error).partition("\n")[0]
