"""A call that is being answered: what its log line, its metrics and its span say.

The middleware makes it and passes it to the servicer in place of gRPC's context.
"""

from __future__ import annotations

import math
import random
import re
import time
from dataclasses import dataclass, field

from glowserve_service.front.received import Holding
from glowserve_service.observability.traces import CallSpan
from glowserve_service.scheduling.ticket import Ticket

# Seeded by the system's generator. Asking that for each id would let other threads take the interpreter's lock.
_RANDOM = random.Random()
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")


@dataclass(eq=False)
class Call:
    """What is known about a call so far. For the event loop's thread alone."""

    method: str
    request_id: str
    began: float = field(default_factory=time.monotonic)
    """On the clock of `time.monotonic`, like the deadline."""
    deadline: float = math.inf
    """When the caller stops waiting."""
    peer: str = ""
    """Where the caller is, such as "ipv4:127.0.0.1:50000"."""
    is_open: bool = True
    """Whether gRPC still has the call. If not, most methods of its context crash the process with newer releases of
    grpcio. A stream that its caller has left ends a little later than its call."""
    span: CallSpan | None = None
    images: int = 0
    """How many images it brought or asked for."""
    not_finite: int = 0
    """How many of them have no finite result."""
    holding: Holding = field(default_factory=Holding)
    """Its requests that count as received and not answered."""
    models: set[tuple[str, int]] = field(default_factory=set)
    """The names and versions of the models that it used; a stream may use several."""
    seconds: dict[str, float] = field(default_factory=dict)
    """The seconds in each stage, summed over parts of the call, which may be in a stage at the same time."""

    @property
    def model(self) -> str:
        """The name of the model that it used; "" if that is none, or several."""
        names = {name for name, _ in self.models}
        return names.pop() if len(names) == 1 else ""

    @property
    def version(self) -> int:
        """That model's version; 0 if there is none, or several."""
        versions = {version for _, version in self.models}
        return versions.pop() if self.model and len(versions) == 1 else 0

    @property
    def ticket(self) -> Ticket:
        """The ticket of its first piece of work."""
        return Ticket(self.deadline)

    def record(self, stage: str, began: float, ended: float) -> None:
        """Adds a time, on the clock of `time.monotonic`, to the seconds of its stage, and to the span."""
        self.seconds[stage] = self.seconds.get(stage, 0.0) + ended - began
        if self.span:
            self.span.stage(stage, ended - began, ago=time.monotonic() - ended)

    def timed(self, stage: str) -> Timed:
        """`with call.timed(stage)` records how long its body takes."""
        return Timed(self, stage)


class Timed:
    """Records the time of the body of `with` in a call."""

    __slots__ = ("_began", "_call", "_stage")

    def __init__(self, call: Call, stage: str) -> None:
        self._call = call
        self._stage = stage

    def __enter__(self) -> None:
        self._began = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self._call.record(self._stage, self._began, time.monotonic())


def request_id(given: object) -> str:
    """The caller's, if it is 1 to 128 letters, digits and ._:/+=@-; else a new one."""
    if isinstance(given, str) and _REQUEST_ID.fullmatch(given):
        return given
    return f"{_RANDOM.getrandbits(128):032x}"
