"""What the log says of a call that has ended."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from glowserve.output import counted

LONGEST_MESSAGE = 4096
"""Characters of a message. It may quote what a caller sent, which has up to 64 MiB."""


class CallLine(NamedTuple):
    """The facts of a call, as the message of a log record. The thread that writes the log makes a line of them."""

    method: str
    model: str
    version: int
    images: int
    not_finite: int
    code: str
    """The name of the status code."""
    seconds: float
    stages: Mapping[str, float]
    """The seconds in each stage."""
    peer: str
    message: str
    """The status message, at most LONGEST_MESSAGE characters."""

    def __str__(self) -> str:
        of_model = f" of {self.model}" if self.model else ""
        not_finite = f" ({self.not_finite} not finite)" if self.not_finite else ""
        message = f": {self.message}" if self.message else ""
        return (
            f"{self.method}{of_model}: {self.code}, {counted(self.images, 'image')}{not_finite} "
            f"in {self.seconds:.4f} s for {self.peer}{message}"
        )

    @property
    def fields(self) -> dict[str, Any]:
        """The facts as members of an object of JSON, beside the text."""
        found = {
            "method": self.method,
            "model": self.model,
            "version": self.version,
            "images": self.images,
            "code": self.code,
            "seconds": round(self.seconds, 6),
            **{f"{stage}_seconds": round(spent, 6) for stage, spent in self.stages.items()},
        }
        if self.not_finite:
            found["not_finite"] = self.not_finite
        return found | {"peer": self.peer}
