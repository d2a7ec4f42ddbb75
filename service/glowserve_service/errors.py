"""The errors of the service, beside those of the runtime, that are not bugs.

GlowserveError (glowserve.runtime.errors)
├── QueueFullError       too many images wait already                  RESOURCE_EXHAUSTED
│   ├── WaitTooLongError so many that the deadline cannot be met       RESOURCE_EXHAUSTED
│   ├── CallsExhaustedError too many calls are open                    RESOURCE_EXHAUSTED
│   └── BytesExhaustedError too many bytes are received, unanswered    RESOURCE_EXHAUSTED
├── DeadlineError        the deadline passed before the work began     DEADLINE_EXCEEDED
├── UnavailableError     the server is starting or stopping            UNAVAILABLE
├── UnauthenticatedError the call carries no token, or a wrong one     UNAUTHENTICATED
├── ForbiddenError       the token has no right to that call           PERMISSION_DENIED
├── UnsupportedError     the protocol allows it, this service does not UNIMPLEMENTED
├── PortError            a port cannot be listened on                  (start-up)
└── TracingError         traces are configured and cannot be sent      (start-up)

`glowserve_service/front/status.py` turns all of them into status codes and their details; docs/errors.md lists those.
"""

from __future__ import annotations

from glowserve.runtime.errors import GlowserveError


class QueueFullError(GlowserveError):
    """Too many images wait already; nothing was done.

    Args:
        message: the sentence.
        retry_seconds: the least time before another attempt.
    """

    def __init__(self, message: str, retry_seconds: float = 1.0) -> None:
        super().__init__(message)
        self.retry_seconds = retry_seconds


class WaitTooLongError(QueueFullError):
    """So many images wait that the deadline would pass first; nothing was done."""


class CallsExhaustedError(QueueFullError):
    """Too many calls are open; nothing was done, and the request was not received."""


class BytesExhaustedError(QueueFullError):
    """Too many bytes of requests are received and not answered; nothing was done."""


class DeadlineError(GlowserveError):
    """The deadline passed before the work, or the rest of it, began."""


class UnavailableError(GlowserveError):
    """The server is starting or stopping, or replaces the model of an unfinished set; nothing was done."""

    retry_seconds = 1.0
    """The least time before another attempt."""


class UnauthenticatedError(GlowserveError):
    """The call carries no token, or a wrong one."""


class ForbiddenError(GlowserveError):
    """The caller's token has no right to this call."""


class UnsupportedError(GlowserveError):
    """The request asks for a part of the protocol that this service does not implement."""


class PortError(GlowserveError):
    """A port cannot be listened on."""


class TracingError(GlowserveError):
    """Traces are configured, and the exporter is not installed, or does not support what is configured."""
