"""What goes wrong in the service and is not a bug.

ServiceError
├── InvalidRequestError  the request is malformed                      INVALID_ARGUMENT
├── ModelNotFoundError   no such model or version                      NOT_FOUND
├── QueueFullError       too much waits already                        RESOURCE_EXHAUSTED
│   └── WaitTooLongError that much that the deadline cannot be met     RESOURCE_EXHAUSTED
├── DeadlineError        the deadline passed before the work began     DEADLINE_EXCEEDED
├── UnavailableError     the server is starting or stopping            UNAVAILABLE
├── UnauthenticatedError the caller did not say who it is              UNAUTHENTICATED
├── ForbiddenError       the caller has no right to that               PERMISSION_DENIED
├── NotFiniteError       the model has no finite answer                FAILED_PRECONDITION
├── UnsupportedError     the request wants what is not here            UNIMPLEMENTED
├── BundleError          a bundle is damaged, or of another version    FAILED_PRECONDITION, or at start-up
├── DeviceError          the device that was asked for is not there    (start-up)
├── PortError            a port cannot be listened on                  (start-up)
└── TracingError         traces are configured and cannot be sent      (start-up)

`service/status.py` turns them into status codes and their details; docs/errors.md lists those.
"""

from __future__ import annotations


class ServiceError(Exception):
    """A sentence that says what was wrong with which value, and what would be accepted."""

    def place(self, part: str) -> None:
        """Says in which part of a call it happened, such as "requests[3]"."""
        self.args = (f"{part}: {self}",)


class InvalidRequestError(ServiceError):
    """The request is malformed.

    Args:
        message: the sentence.
        field: the path of the field that is wrong, such as "images.encoded.data[1]"; None if there is no one field.
    """

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field

    def place(self, part: str) -> None:
        """See ServiceError.place; the field lies there, too."""
        super().place(part)
        self.field = f"{part}.{self.field}" if self.field else part


class ModelNotFoundError(ServiceError):
    """There is no such model or version."""


class QueueFullError(ServiceError):
    """Too much waits already; nothing was done.

    Args:
        message: the sentence.
        retry_seconds: when to try again at the earliest.
    """

    def __init__(self, message: str, retry_seconds: float = 1.0) -> None:
        super().__init__(message)
        self.retry_seconds = retry_seconds


class WaitTooLongError(QueueFullError):
    """So much waits that the deadline would pass first; nothing was done."""


class DeadlineError(ServiceError):
    """The deadline passed before the work, or the rest of it, began."""


class UnavailableError(ServiceError):
    """The server is starting or stopping; nothing was done."""

    retry_seconds = 1.0
    """When to try again at the earliest."""


class UnauthenticatedError(ServiceError):
    """The caller sent no token, or a wrong one."""


class ForbiddenError(ServiceError):
    """The caller's token has no right to this call."""


class NotFiniteError(ServiceError):
    """The model has no finite answer to this input.

    Args:
        message: names the first of the images.
        images: how many.
    """

    def __init__(self, message: str, images: int) -> None:
        super().__init__(message)
        self.images = images


class UnsupportedError(ServiceError):
    """The request wants what its protocol allows and this service does not do."""


class BundleError(ServiceError):
    """A bundle is damaged, incomplete, or of a version that this service does not read."""


class DeviceError(ServiceError):
    """The device that was asked for cannot be used."""


class PortError(ServiceError):
    """A port cannot be listened on."""


class TracingError(ServiceError):
    """Traces are configured, and what sends them is not installed, or would not send them so."""
