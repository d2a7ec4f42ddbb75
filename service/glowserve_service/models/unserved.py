"""Versions that were found in the repository and are not served: why, and whether that is final."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from glowserve.runtime.errors import GlowserveError
from glowserve.runtime.repository import Fingerprint

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
    fingerprint: Fingerprint
    final: bool
    """Whether its files were the same at two polls, so that nobody is still writing them."""


class UnservedVersions:
    """The versions that failed to load, and the one that is being loaded."""

    def __init__(self) -> None:
        # By model: a poll looks at each model, and need not look at the failures of the others.
        self._failures: dict[str, dict[int, LoadFailure]] = {}
        self.loading: Key | None = None
        """The version that is being loaded."""

    def __iter__(self) -> Iterator[Unserved]:
        """By name and version."""
        keys = {(name, version) for name, failures in self._failures.items() for version in failures}
        for key in sorted(keys | ({self.loading} if self.loading else set())):
            failure, loading = self.get(key), key == self.loading
            yield Unserved(
                *key,
                failure.reason if failure else "",
                refused=failure is not None and failure.final and not loading,
            )

    def get(self, key: Key) -> LoadFailure | None:
        """Why a version failed; None if it did not."""
        name, version = key
        return self._failures.get(name, {}).get(version)

    def count(self, name: str) -> int:
        """How many versions of a model failed."""
        return len(self._failures.get(name, {}))

    def set(self, key: Key, failure: LoadFailure) -> None:
        """Records a failure."""
        name, version = key
        self._failures.setdefault(name, {})[version] = failure

    def forget(self, key: Key) -> None:
        """Removes a version that is served, or has gone."""
        name, version = key
        self._failures.get(name, {}).pop(version, None)

    def keep(self, name: str, versions: Collection[int]) -> None:
        """Forgets the versions of a model that are not in the repository any more."""
        for version in self._failures.get(name, {}).keys() - set(versions):
            self.forget((name, version))

    def keep_models(self, names: Collection[str]) -> None:
        """Forgets the versions of models that are not in the repository any more."""
        for name in self._failures.keys() - set(names):
            del self._failures[name]

    def errors(self) -> list[GlowserveError]:
        """What was raised for each version that failed."""
        return [failure.error for failures in self._failures.values() for failure in failures.values()]
