"""Versions that were found in the repository and are not served: why, and whether that is final."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from glowserve.runtime.errors import GlowserveError

Key = tuple[str, int]
"""A model's name, and a version."""

WHOLE_MODEL = 0
"""In place of a version: the model's folder cannot be listed."""


@dataclass(frozen=True)
class Unserved:
    """A version that was found and is not served."""

    name: str
    version: int
    reason: str
    """Why, in a sentence; empty while it is loaded for the first time."""
    refused: bool
    """Whether that is final until its files change; else it is being loaded, or perhaps still being copied."""


@dataclass(frozen=True)
class LoadFailure:
    """Why a version could not be loaded."""

    error: GlowserveError
    """Without the frames in which it was raised: they hold the engine."""
    reason: str
    fingerprint: tuple[object, ...]
    final: bool
    """Whether its files were the same at two polls, so that nobody is still writing them."""


class UnservedVersions:
    """The versions that failed to load, and the one that is being loaded."""

    def __init__(self) -> None:
        self._failures: dict[Key, LoadFailure] = {}
        self.loading: Key | None = None
        """The version that is being loaded."""

    def __iter__(self) -> Iterator[Unserved]:
        """By name and version."""
        keys = {*self._failures, *([self.loading] if self.loading else [])}
        for name, version in sorted(keys):
            failure = self._failures.get((name, version))
            loading = (name, version) == self.loading
            yield Unserved(
                name,
                version,
                failure.reason if failure else "",
                refused=failure is not None and failure.final and not loading,
            )

    def get(self, key: Key) -> LoadFailure | None:
        """Why a version failed; None if it did not."""
        return self._failures.get(key)

    def set(self, key: Key, failure: LoadFailure) -> None:
        """Records a failure."""
        self._failures[key] = failure

    def forget(self, key: Key) -> None:
        """Removes a version that is served, or has gone."""
        self._failures.pop(key, None)

    def keep(self, name: str, versions: Collection[int]) -> None:
        """Forgets the versions of a model that are not in the repository any more."""
        for key in [key for key in self._failures if key[0] == name and key[1] not in versions]:
            self.forget(key)

    def keep_models(self, names: Collection[str]) -> None:
        """Forgets the versions of models that are not in the repository any more."""
        for key in [key for key in self._failures if key[0] not in names]:
            self.forget(key)

    def errors(self) -> list[GlowserveError]:
        """What was raised for each version that failed."""
        return [failure.error for failure in self._failures.values()]
