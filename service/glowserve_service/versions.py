"""Which versions of a model are served."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

_NEWEST = re.compile(r"[1-9][0-9]{0,3}")
_GIVEN = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)=([1-9][0-9]{0,17}(?:,[1-9][0-9]{0,17})*)")


@dataclass(frozen=True)
class VersionPolicy:
    """How many of the newest versions of each model are served; for some models, which versions."""

    newest: int = 1
    given: Mapping[str, frozenset[int]] = field(default_factory=dict)
    """By the model's name."""

    @classmethod
    def parse(cls, text: str) -> VersionPolicy:
        """Reads words such as "2 digits=3,5 faces=7": how many of the newest, then versions by model.

        Raises:
            ValueError: it is something else.
        """
        words = text.split()
        newest = int(words.pop(0)) if words and _NEWEST.fullmatch(words[0]) else 1
        matches = [_GIVEN.fullmatch(word) for word in words]
        given = {
            match[1]: frozenset(int(number) for number in match[2].split(",")) for match in matches if match
        }
        if not text.strip() or len(given) < len(words):
            raise ValueError(
                f"versions is {text!r}; it must be how many of the newest versions are served, or MODEL=VERSION,... "
                "for each model with versions of its own, or both, as in '1 digits=3,5'"
            )
        return cls(newest, given)

    def candidates(self, name: str, versions: Iterable[int]) -> list[int]:
        """The versions of a model that may be served, the newest first."""
        allowed = self.given.get(name)
        return sorted((each for each in versions if allowed is None or each in allowed), reverse=True)

    def most(self, name: str) -> int:
        """How many versions of a model are served: the first of its candidates that can be loaded."""
        return len(self.given[name]) if name in self.given else self.newest
