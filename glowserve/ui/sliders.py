"""The sliders of forms: the values that each can have, and how its text is read."""

from __future__ import annotations

import math
from dataclasses import dataclass

from glowserve.output import shortened
from glowserve.ui.errors import FormError


@dataclass(frozen=True, kw_only=True)
class Slider:
    """A number that a visitor chooses."""

    name: str
    """The field of the form."""

    label: str
    """What the visitor reads."""

    low: float
    """The least value."""

    high: float
    """The largest value."""

    step: float = 1
    """The distance of neighbouring values; whole numbers if it is 1."""

    default: float
    """The value of a form that nobody filled in."""

    hint: str
    """What the value does, in one sentence."""

    def read(self, text: str) -> float:
        """The number of a field's text, an int if the values are whole; the default if there is no text.

        Raises:
            FormError: the text is no such number.
        """
        if not text:
            return self.default
        try:
            value = int(text) if self.step == 1 else float(text)
        except ValueError:
            value = math.nan
        if not self.low <= value <= self.high:
            kind = "a whole number" if self.step == 1 else "a number"
            raise FormError(
                f"{self.name} is {shortened(text, 40)!r}; it must be {kind} from {self.low:g} to {self.high:g}"
            )
        return value
