"""What the service answered to the cases of a family, and what was wrong with that."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import glowserve_service

from tests.soak.fuzz.cases import SEED

# docs/errors.md, without INTERNAL, and without the statuses of a slow or stopping server.
CONTRACT = {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION"}
"""The statuses that a call may end with."""

# Messages must not say how the service is built and where it is installed.
_INTERNALS = re.compile(
    r"Traceback|site-packages|0x[0-9a-fA-F]{6}|<[\w.]+ object|<class|\.py\b|/(?:home|root|tmp|usr|proc|work)/|"
    + "|".join(re.escape(str(place)) for place in (Path(glowserve_service.__file__).parents[2], Path.cwd()))
)
# glowserve_service/front/middleware.py truncates longer messages.
_LONGEST_MESSAGE = 1280
_FOLDER = Path("out/fuzz")


@dataclass
class Findings:
    """The statuses and failures of a family of cases."""

    family: str
    statuses: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By what was called, and the status."""
    failures: list[str] = field(default_factory=list)

    def add(
        self, number: int, called: str, status: str, allowed: set[str], message: str, sent: bytes
    ) -> None:
        """Adds the answer to a case.

        Args:
            number: the case's.
            called: what was called, for the table.
            status: what it answered.
            allowed: the statuses that it may answer.
            message: the text of the answer.
            sent: the case's bytes.
        """
        self.statuses[called, status] += 1
        if faults := _faults(status, allowed, message):
            self.failures.append(
                f"seed {SEED}, {self.family} {number}, {called}: {'; '.join(faults)}\n"
                f"  {message!r}\n  sent {sent.hex()}"
            )

    def table(self) -> str:
        """A line for each thing that was called, a column for each status."""
        columns = sorted({status for _, status in self.statuses}, key=lambda name: (name != "OK", name))
        lines = sorted({called for called, _ in self.statuses})
        rows = [[self.family, *columns]]
        rows += [[called, *(str(self.statuses[called, status]) for status in columns)] for called in lines]
        sums = (sum(self.statuses[called, status] for called in lines) for status in columns)
        rows.append(["all", *map(str, sums)])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        cells = ([cell.rjust(width) for cell, width in zip(row, widths, strict=True)] for row in rows)
        return "\n".join(f"{row[0].strip():{widths[0]}}  {'  '.join(row[1:])}" for row in cells)

    def finish(self) -> None:
        """Prints the table; writes the failures to out/fuzz/FAMILY.txt, and raises AssertionError if there are any."""
        print(f"\n{self.table()}")
        path = _FOLDER / f"{self.family}.txt"
        if self.failures:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("\n".join(self.failures))
        shown = "\n".join(failure[:500] for failure in self.failures[:10])
        assert not self.failures, f"{len(self.failures)} cases, all of them in {path}:\n{shown}"


def _faults(status: str, allowed: set[str], message: str) -> list[str]:
    faults = []
    if status not in allowed:
        faults.append(f"{status} is not one of {', '.join(sorted(allowed))}")
    if status != "OK" and not message:
        faults.append("there is no message")
    if len(message.encode()) > _LONGEST_MESSAGE:
        faults.append(f"the message has {len(message.encode())} bytes")
    if found := _INTERNALS.search(message):
        faults.append(f"the message contains {found[0]!r}")
    return faults
