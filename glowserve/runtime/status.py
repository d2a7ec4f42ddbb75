"""Which gRPC status each error of the runtime is to a caller, by name: the runtime itself knows no gRPC."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from glowserve.runtime.errors import (
    BundleError,
    InvalidRequestError,
    ModelNotFoundError,
    NotFiniteError,
)


class Status(NamedTuple):
    """What a kind of error is to a caller."""

    code: str
    """The name of a gRPC status code."""

    reason: str
    """Programs may rely on it: it never changes."""


INTERNAL = Status("INTERNAL", "INTERNAL")
"""Of everything that is not in a table."""

STATUSES: Mapping[type[Exception], Status] = {
    InvalidRequestError: Status("INVALID_ARGUMENT", "INVALID_REQUEST"),
    ModelNotFoundError: Status("NOT_FOUND", "MODEL_NOT_FOUND"),
    NotFiniteError: Status("FAILED_PRECONDITION", "NOT_FINITE"),
    BundleError: Status("FAILED_PRECONDITION", "MODEL_REFUSED"),
}


def status_of(error: Exception, statuses: Mapping[type[Exception], Status] = STATUSES) -> Status:
    """The status of an error, of a table."""
    return statuses.get(type(error), INTERNAL)
