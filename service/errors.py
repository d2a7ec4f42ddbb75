"""What goes wrong in the service and is not a bug.

ServiceError
├── InvalidRequestError  the request is malformed                      INVALID_ARGUMENT
├── ModelNotFoundError   no such model or version                      NOT_FOUND
├── QueueFullError       too much waits already                        RESOURCE_EXHAUSTED
├── UnavailableError        the server is starting or stopping           UNAVAILABLE
├── NotFiniteError       the model has no finite answer                FAILED_PRECONDITION
├── UnsupportedError     the request wants what is not here            UNIMPLEMENTED
├── BundleError          a bundle is damaged, or of another version    (start-up)
├── DeviceError          the device that was asked for is not there    (start-up)
└── PortError            a port cannot be listened on                  (start-up)

`service/status.py` turns them into status codes.
"""

from __future__ import annotations


class ServiceError(Exception):
    """A sentence that says what was wrong with which value, and what would be accepted."""


class InvalidRequestError(ServiceError):
    """The request is malformed."""


class ModelNotFoundError(ServiceError):
    """There is no such model or version."""


class QueueFullError(ServiceError):
    """Too much waits already; nothing was done."""


class UnavailableError(ServiceError):
    """The server is starting or stopping; nothing was done."""


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
