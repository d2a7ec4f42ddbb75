"""The call that a log line belongs to. It is the only thing about a call that is not passed as an argument."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LogContext:
    """What a log line says about its call; empty outside calls."""

    request_id: str = ""
    trace_id: str = ""
    """As W3C writes it: 32 hexadecimal digits. Empty if the call is not traced."""


_OUTSIDE_CALLS = LogContext()
_current: ContextVar[LogContext] = ContextVar("log_context", default=_OUTSIDE_CALLS)


def bind(context: LogContext) -> None:
    """Sets the context of the current task, and of tasks and threads that copy the task's context later."""
    _current.set(context)


def current() -> LogContext:
    """The context that was bound last; an empty one outside calls."""
    return _current.get()
