"""Which status an error is, for a service and for a model in one's own process alike."""

from __future__ import annotations

import grpc

from service.errors import (
    InvalidRequestError,
    ModelNotFoundError,
    NotFiniteError,
    QueueFullError,
    ServiceError,
    UnavailableError,
    UnsupportedError,
)

_STATUS = {
    InvalidRequestError: grpc.StatusCode.INVALID_ARGUMENT,
    ModelNotFoundError: grpc.StatusCode.NOT_FOUND,
    QueueFullError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    UnavailableError: grpc.StatusCode.UNAVAILABLE,
    NotFiniteError: grpc.StatusCode.FAILED_PRECONDITION,
    UnsupportedError: grpc.StatusCode.UNIMPLEMENTED,
}


def status_of(error: ServiceError) -> grpc.StatusCode:
    """The code that a caller is given."""
    return _STATUS.get(type(error), grpc.StatusCode.INTERNAL)
