"""The call that is being answered: what its log lines, metrics and spans tell. It knows no gRPC."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field

from glowserve_service.observability.traces import CallSpan

PREPARATION, QUEUE, EXECUTION, SERIALIZATION = "preparation", "queue", "execution", "serialization"
"""The stages of a call, as metrics, logs and spans name them."""

# Begun by the system's. Asking for those at each call would let other threads have the interpreter's lock.
_RANDOM = random.Random()
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")


@dataclass(eq=False)
class Call:
    """Grows while the call is answered. For the event loop's thread alone."""

    method: str = ""
    request_id: str = ""
    span: CallSpan | None = None
    deadline: float = math.inf
    """When the caller stops waiting, on the clock of `time.monotonic`."""
    images: int = 0
    """Images that it brought or asked for."""
    models: set[tuple[str, int]] = field(default_factory=set)
    """The models that it found, and their versions; a stream may have several."""
    releases: list[Callable[[], None]] = field(default_factory=list)
    """What is to be called when it has ended."""
    seconds: dict[str, float] = field(default_factory=dict)
    """By stage, added up: parts of a call may go through a stage side by side."""

    @property
    def model(self) -> str:
        """The name of the model that it found; "" if that is none, or several."""
        names = {name for name, _ in self.models}
        return names.pop() if len(names) == 1 else ""

    @property
    def version(self) -> int:
        """That model's version; 0 if there is none, or several."""
        versions = {version for _, version in self.models}
        return versions.pop() if self.model and len(versions) == 1 else 0

    def spent(self, stage: str, seconds: float, ago: float = 0.0) -> None:
        """Adds to a stage, of which a part ended `ago` seconds before now."""
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds
        if self.span:
            self.span.stage(stage, seconds, ago)


_current: ContextVar[Call | None] = ContextVar("call", default=None)


def begin(call: Call) -> None:
    """Makes it the current call of this task, and of those that the task starts."""
    _current.set(call)


def current() -> Call:
    """The call that is being answered; outside of calls one that nobody hears of."""
    return _current.get() or Call()


def request_id(given: object) -> str:
    """The caller's, if it is 1 to 128 letters, digits and ._:/+=@-; else a new one."""
    if isinstance(given, str) and _REQUEST_ID.fullmatch(given):
        return given
    return f"{_RANDOM.getrandbits(128):032x}"
