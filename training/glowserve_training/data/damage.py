"""Pictures that cannot be read: a few among many are left out and told of, more are refused."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field

from tqdm import tqdm

from glowserve_training.errors import DataError

# So many are called by their names.
_NAMED = 3


def tolerated(total: int) -> int:
    """How many of `total` pictures may be damaged: 1 in 100, and a single one of any number."""
    return max(1, total // 100)


@dataclass
class Damage:
    """Keeps count of the damaged pictures of a source."""

    count: int = 0
    """How many."""

    first: list[str] = field(default_factory=list)
    """The first few: what they are called, and what is wrong with them."""

    def add(self, name: str, reason: object) -> None:
        """One more, `name` by `Pictures.name`."""
        self.count += 1
        if len(self.first) < _NAMED:
            self.first.append(f"{name} ({str(reason).partition(chr(10))[0]})")

    def check(self, data: str, read: int, total: int) -> None:
        """Refuses too many; `read` of the `total` pictures of the source `data` were tried.

        Held to the whole source, so that its held-out part is never refused where all of it is not.

        Raises:
            DataError: more than `tolerated` of `total` are damaged.
        """
        if self.count > tolerated(total):
            raise DataError(
                f"data {data!r}: {self.count} of {read} pictures cannot be read, more than 1 in 100: {self}; "
                "repair them, or remove them"
            )

    def tell(self, read: int) -> None:
        """A line on stderr, if there is anything to tell."""
        if self.count:
            tqdm.write(
                f"glowserve: {self.count} of {read} pictures cannot be read and are left out: {self}",
                file=sys.stderr,
            )

    def __str__(self) -> str:
        more = self.count - len(self.first)
        return ", ".join(self.first) + (f", and {more} more" if more else "")
