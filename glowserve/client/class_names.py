"""The classes of the images of a call, which is answered portion by portion."""

from __future__ import annotations

from collections.abc import Sequence

from glowserve.client.inputs import Portion


class ClassNames:
    """Names the class of each image of a portion. Portions are answered in their order, one after the other.

    Args:
        classes: the class of every image, or one for each; "" or none: no class is named.

    Raises:
        TypeError: a class is no name.
    """

    def __init__(self, classes: str | Sequence[str] = "") -> None:
        self._all = classes if isinstance(classes, str) else ""
        self._each = [] if isinstance(classes, str) else list(classes)
        self._answered = 0
        for name in self._each:
            if not isinstance(name, str):
                raise TypeError(f"classes has {name!r}; pass the names of classes")

    def of(self, portion: Portion) -> list[str]:
        """Those of the images of the next portion.

        Raises:
            ValueError: there are fewer classes than images.
        """
        if not self._each:
            return [self._all] * len(portion) if self._all else []
        names = self._each[self._answered : self._answered + len(portion)]
        if len(names) < len(portion):
            raise ValueError(
                f"classes has {len(self._each)} names, and there are more images; give one for each"
            )
        return names

    def answered(self, portion: Portion) -> None:
        """The portion has been answered."""
        self._answered += len(portion)

    def check(self) -> None:
        """Raises ValueError if there are more classes than images. To be called at the end."""
        if self._answered < len(self._each):
            raise ValueError(
                f"classes has {len(self._each)} names, and there are {self._answered} images; give one for each"
            )
