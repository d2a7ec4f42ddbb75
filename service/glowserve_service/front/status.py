"""The gRPC status of each error. `glowserve.runtime.status` has those of the runtime.

Beside its code and message a status has details, as google/rpc/error_details.proto defines them. docs/errors.md is the
table for people.
"""

from __future__ import annotations

from collections.abc import Mapping

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from glowserve.runtime import status as runtime_status
from glowserve.runtime.errors import InvalidRequestError
from glowserve.runtime.status import Status
from glowserve_service.errors import (
    BytesExhaustedError,
    CallsExhaustedError,
    DeadlineError,
    ForbiddenError,
    QueueFullError,
    UnauthenticatedError,
    UnavailableError,
    UnsupportedError,
    WaitTooLongError,
)

DOMAIN = "glowserve"
"""The domain of the reasons in ErrorInfo."""

STATUSES: Mapping[type[Exception], Status] = {
    **runtime_status.STATUSES,
    QueueFullError: Status("RESOURCE_EXHAUSTED", "QUEUE_FULL"),
    WaitTooLongError: Status("RESOURCE_EXHAUSTED", "WAIT_TOO_LONG"),
    CallsExhaustedError: Status("RESOURCE_EXHAUSTED", "TOO_MANY_CALLS"),
    BytesExhaustedError: Status("RESOURCE_EXHAUSTED", "TOO_MANY_BYTES"),
    DeadlineError: Status("DEADLINE_EXCEEDED", "DEADLINE_PASSED"),
    UnavailableError: Status("UNAVAILABLE", "SERVER_UNAVAILABLE"),
    UnauthenticatedError: Status("UNAUTHENTICATED", "UNAUTHENTICATED"),
    ForbiddenError: Status("PERMISSION_DENIED", "FORBIDDEN"),
    UnsupportedError: Status("UNIMPLEMENTED", "UNSUPPORTED"),
}


def status_of(error: Exception) -> grpc.StatusCode:
    """The code that the caller gets."""
    return grpc.StatusCode[_status(error).code]


def reason_of(error: Exception) -> str:
    """The reason that the caller gets."""
    return _status(error).reason


def retry_seconds(error: Exception) -> float | None:
    """The least time before the caller tries again; None if that would not help, or is unknown."""
    return error.retry_seconds if isinstance(error, QueueFullError | UnavailableError) else None


def trailing_metadata(error: Exception, message: str) -> tuple[tuple[str, bytes], ...]:
    """The metadata with the status and its details.

    Args:
        error: the error.
        message: the sentence that the caller gets.
    """
    status = status_pb2.Status(code=status_of(error).value[0], message=message)
    for detail in _details(error, message):
        status.details.add().Pack(detail)
    metadata: tuple[tuple[str, bytes], ...] = rpc_status.to_status(status).trailing_metadata
    return metadata


def _status(error: Exception) -> Status:
    return runtime_status.status_of(error, STATUSES)


def _details(error: Exception, message: str) -> list[Message]:
    limits = error.limits if isinstance(error, InvalidRequestError) else {}
    facts = {name: str(most) for name, most in limits.items()}
    details: list[Message] = [
        error_details_pb2.ErrorInfo(reason=reason_of(error), domain=DOMAIN, metadata=facts)
    ]
    if isinstance(error, InvalidRequestError) and error.field is not None:
        violation = error_details_pb2.BadRequest.FieldViolation(field=error.field, description=message)
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if (seconds := retry_seconds(error)) is not None:
        delay = Duration()
        delay.FromNanoseconds(round(1e9 * seconds))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    return details
