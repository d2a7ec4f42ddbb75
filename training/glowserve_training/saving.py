"""Writing PyTorch objects to files atomically."""

from __future__ import annotations

from pathlib import Path

import torch

from glowserve.files import atomic_write
from glowserve_training.errors import RunError


def save(content: object, path: Path, what: str) -> None:
    """Writes `content` to `path`, completely or not at all; the folder is made if needed.

    Args:
        content: an object that `torch.save` can write.
        path: the file to write or replace.
        what: the content's name in the error message.

    Raises:
        RunError: it cannot be written; an existing file is unchanged.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            torch.save(content, file)
    except (OSError, RuntimeError) as error:  # torch wraps errors of the file system in RuntimeError
        raise RunError(
            f"{what} could not be written to {path}: {_reason(error)}. Make room, and the same command resumes from "
            "the last saved state"
        ) from error


def _reason(error: BaseException) -> str:
    """The file system's message, if there is one among the error's causes."""
    while not isinstance(error, OSError) and (inner := error.__cause__ or error.__context__):
        error = inner
    return error.strerror or str(error) if isinstance(error, OSError) else str(error).partition("\n")[0]
