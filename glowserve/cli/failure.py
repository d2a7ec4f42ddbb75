"""How a command ends other than well."""

from __future__ import annotations


class Failure(Exception):  # noqa: N818  # it is an outcome
    """A sentence for the user, and the exit code.

    Args:
        message: what was wrong with which value, and what to do.
        code: 1, it was tried and failed; 2, it could not begin.
    """

    def __init__(self, message: object, code: int) -> None:
        super().__init__(str(message))
        self.code = code
