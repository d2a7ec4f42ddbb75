"""Unreadable images of a source: a few are skipped and reported, more are an error."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field

from tqdm import tqdm

from glowserve_training.errors import DataError

# Messages name at most this many images.
_MOST_NAMED = 3


def tolerated(total: int) -> int:
    """How many of `total` images may be unreadable: 1 in 10, and always one."""
    return max(1, total // 10)


@dataclass
class UnreadableImages:
    """Counts the unreadable images of a source."""

    count: int = 0
    """How many."""

    first: list[str] = field(default_factory=list)
    """Name and reason of the first few."""

    def add(self, name: str, reason: object) -> None:
        """Counts one more, named by `SourceImages.name`."""
        self.count += 1
        if len(self.first) < _MOST_NAMED:
            self.first.append(f"{name} ({str(reason).partition(chr(10))[0]})")

    def check(self, data: str, read: int, total: int) -> None:
        """Refuses too many.

        The limit depends on the whole source, so that its held-out images alone are never refused where the whole
        source is accepted.

        Args:
            data: the source, for the message.
            read: how many images were tried.
            total: images of the whole source.

        Raises:
            DataError: more than `tolerated` of `total` are unreadable.
        """
        if self.count > tolerated(total):
            raise DataError(
                f"data {data!r}: {self.count} of {read} images cannot be read, more than 1 in 10: {self}; "
                "repair them, or remove them"
            )

    def report(self, read: int) -> None:
        """Prints a line on stderr if there are any of the `read` images."""
        if self.count:
            tqdm.write(
                f"glowserve: {self.count} of {read} images cannot be read and are skipped: {self}",
                file=sys.stderr,
            )

    def __str__(self) -> str:
        more = self.count - len(self.first)
        return ", ".join(self.first) + (f", and {more} more" if more else "")
