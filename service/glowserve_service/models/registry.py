"""The models that are served, by name and version: finds the one that a request means."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Generic, TypeVar

from glowserve.runtime.errors import InvalidRequestError, ModelNotFoundError
from glowserve_service.models.lane import DIRECTIONS
from glowserve_service.models.model import Lease, Model
from glowserve_service.models.served_model import ServedModel
from glowserve_service.observability.metrics import Metrics

M = TypeVar("M", bound=Model)


class ModelRegistry(Generic[M]):
    """The versions of models that are served, here or by another process."""

    def __init__(self) -> None:
        self._models: dict[str, dict[int, M]] = {}

    def __iter__(self) -> Iterator[M]:
        """By name, then version."""
        return (model for versions in self._models.values() for model in versions.values())

    def names(self) -> set[str]:
        """The names of the models."""
        return set(self._models)

    def versions(self, name: str) -> Mapping[int, M]:
        """The served versions of a model, ascending."""
        return self._models.get(name, {})

    def replace(self, name: str, versions: Mapping[int, M]) -> list[M]:
        """Serves these versions of a model, and no others; returns the versions that are not served any more."""
        before = self.versions(name)
        kept = {id(model) for model in versions.values()}
        gone = [model for model in before.values() if id(model) not in kept]
        models = {**self._models, name: dict(sorted(versions.items()))}
        self._models = {name: models[name] for name in sorted(models) if models[name]}
        return gone

    def lease(self, name: str, version: int) -> Lease:
        """Finds the model that a request means, and keeps it open: `async with models.lease(...) as model`.

        Raises: see `find`.
        """
        return self.find(name, version).lease()

    def find(self, name: str, version: int) -> M:
        """The model of a ModelSpec: a name, empty for the only model, and a version, 0 for the newest.

        Raises:
            InvalidRequestError: no name is given, and there are several models.
            ModelNotFoundError: there is no such model or version.
        """
        if not name:
            if len(self._models) > 1:
                raise InvalidRequestError(
                    f"model.name is empty and there are several models: {self._served()}", "model.name"
                )
            name = next(iter(self._models), "")
        versions = self.versions(name)
        if not versions:
            raise ModelNotFoundError(f"model.name {name[:128]!r} is not served; served are {self._served()}")
        model = versions.get(version or max(versions))
        if model is None:
            raise ModelNotFoundError(
                f"model.version {version} of {name!r} is not served; served are {self._served()}"
            )
        return model

    def _served(self) -> str:
        return ", ".join(f"{model.name} version {model.version}" for model in self) or "none"


class ServedModels(ModelRegistry[ServedModel]):
    """The versions that this process serves, with their metrics.

    Args:
        metrics: the service's.
    """

    def __init__(self, metrics: Metrics) -> None:
        super().__init__()
        self._metrics = metrics
        self.on_change: Callable[[], None] = lambda: None
        """Called when other versions are served than before."""

    def replace(self, name: str, versions: Mapping[int, ServedModel]) -> list[ServedModel]:
        """See ModelRegistry."""
        before = self.versions(name)
        gone = super().replace(name, versions)
        for model in gone:
            model.hide()
        for model in versions.values():
            model.show()
        for direction in DIRECTIONS:
            if versions:
                self._metrics.queue_length.labels(name, direction).set_function(
                    partial(self._queue_length, name, direction)
                )
            elif before:
                self._metrics.queue_length.remove(name, direction)
        self.on_change()
        return gone

    def _queue_length(self, name: str, direction: str) -> int:
        return sum(model.lanes[direction].queue_length for model in self.versions(name).values())
