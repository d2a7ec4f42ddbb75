"""The errors of the pages, and the sentence and the status that each becomes."""

from __future__ import annotations

import grpc

from glowserve.client.errors import RequestError
from glowserve.images import InvalidImageError

# Of the service's statuses, those for which the visitor can fill in something else.
_VISITORS = (
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.OUT_OF_RANGE,
    grpc.StatusCode.FAILED_PRECONDITION,
)


class FormError(ValueError):
    """A form that cannot be used: a field is missing, or has a value that makes no sense.

    Args:
        message: which value, and what to do.
        status: the status code of HTTP.
    """

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


class ListenError(OSError):
    """The pages cannot be served on an address. The message says why, and what to do."""


Explained = FormError | InvalidImageError | RequestError
"""The errors that a visitor is told about."""


def sentence(error: Explained, target: str) -> str:
    """What a visitor reads.

    Args:
        error: the error.
        target: HOST:PORT of the service.
    """
    if not isinstance(error, RequestError):
        return _capitalized(str(error))
    if error.code is grpc.StatusCode.UNAVAILABLE:
        return f"The service {target} is not available; is `glowserve serve` running there? {error.message}"
    if error.code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
        return f"The service {target} does not permit this to the page's token: {error.message}"
    return f"The service {target} answers {error.code.name}: {error.message}"


def status(error: Explained) -> int:
    """The status code of HTTP."""
    if isinstance(error, RequestError):
        return 400 if error.code in _VISITORS else 502
    return error.status if isinstance(error, FormError) else 400


def _capitalized(text: str) -> str:
    return text[:1].upper() + text[1:]
