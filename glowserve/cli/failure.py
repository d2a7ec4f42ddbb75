"""The error that ends a command."""

from __future__ import annotations


class Failure(Exception):  # noqa: N818  # the outcome of a command, for users
    """Ends a command with a message and an exit code.

    Args:
        message: what was wrong with which value, and what to do.
        code: 1 if the command ran and failed, 2 if it could not begin.
    """

    def __init__(self, message: object, code: int) -> None:
        super().__init__(str(message))
        self.code = code
