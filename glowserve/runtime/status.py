"""Maps the errors of the runtime to gRPC status codes and reasons. Codes are strings: the runtime imports no gRPC."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from glowserve.runtime.errors import (
    BundleError,
    InvalidRequestError,
    MissingFileError,
    ModelNotFoundError,
    NotCalibratedError,
    NotFiniteError,
)


class Status(NamedTuple):
    """The status that a caller gets for an error."""

    code: str
    """The name of a gRPC status code."""

    reason: str
    """The reason in ErrorInfo. It never changes, since programs compare it."""


INTERNAL = Status("INTERNAL", "INTERNAL")
"""The status of errors that are not in a table."""

STATUSES: Mapping[type[Exception], Status] = {
    InvalidRequestError: Status("INVALID_ARGUMENT", "INVALID_REQUEST"),
    ModelNotFoundError: Status("NOT_FOUND", "MODEL_NOT_FOUND"),
    NotFiniteError: Status("FAILED_PRECONDITION", "NOT_FINITE"),
    NotCalibratedError: Status("FAILED_PRECONDITION", "NOT_CALIBRATED"),
    BundleError: Status("FAILED_PRECONDITION", "MODEL_REFUSED"),
    MissingFileError: Status("FAILED_PRECONDITION", "MISSING_FILE"),
}
"""The statuses of the runtime's errors. DeviceError has none: it is no fault of the call."""


def status_of(error: Exception, statuses: Mapping[type[Exception], Status] = STATUSES) -> Status:
    """The status of an error in a table, by its exact type; INTERNAL if the table does not have the type."""
    return statuses.get(type(error), INTERNAL)
