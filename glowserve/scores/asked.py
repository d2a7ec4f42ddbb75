"""What a caller asks for when images are scored."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from glowserve.scores.table import TABLE, Needs

MAX_IMPORTANCE_SAMPLES = 64
"""The most draws of noise for each image. Each is a run of the forward graph."""


def all_asked(
    names: Iterable[str], false_alarm_rate: float | None, importance_samples: int
) -> frozenset[str]:
    """The scores that are asked for by name, and those that come with them and with the other arguments."""
    asked = {*names}
    if false_alarm_rate is not None:
        asked.add("anomalous")
    if "anomalous" in asked:
        asked.add("anomaly_p_value")
    if importance_samples > 1:
        asked.add("standard_error")
    return frozenset(asked)


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is to be computed for images, beside the scores that are in every answer. Its values have been checked."""

    scores: frozenset[str] = frozenset()
    """Names in the table."""

    false_alarm_rate: float | None = None
    """Of `anomalous`, between 0 and 1; None for the default."""

    importance_samples: int = 1
    """M, 1 to MAX_IMPORTANCE_SAMPLES: draws of noise from which the log-likelihood is estimated."""

    @cached_property
    def needs(self) -> Needs:
        """What the scores are computed from."""
        needs = Needs.NOTHING
        for name in self.scores:
            needs |= TABLE[name].needs
        return needs

    def __contains__(self, name: str) -> bool:
        return name in self.scores


NOTHING_ELSE = Asked()
"""The scores that are in every answer, from one draw of noise."""
