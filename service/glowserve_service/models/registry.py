"""The models that are served, by name and version: finds the one that a request means."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial

from glowserve.runtime.errors import InvalidRequestError, ModelNotFoundError
from glowserve_service.models.lane import DIRECTIONS
from glowserve_service.models.served_model import Lease, ServedModel
from glowserve_service.observability.metrics import Metrics


class ModelRegistry:
    """The versions of models that are served.

    Args:
        metrics: the service's.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._models: dict[str, dict[int, ServedModel]] = {}

    def __iter__(self) -> Iterator[ServedModel]:
        """By name, then version."""
        return (model for versions in self._models.values() for model in versions.values())

    def names(self) -> set[str]:
        """The names of the models."""
        return set(self._models)

    def versions(self, name: str) -> Mapping[int, ServedModel]:
        """The served versions of a model, ascending."""
        return self._models.get(name, {})

    def replace(self, name: str, versions: Mapping[int, ServedModel]) -> list[ServedModel]:
        """Serves these versions of a model, and no others; returns the versions that are not served any more."""
        before = self.versions(name)
        kept = {id(model) for model in versions.values()}
        gone = [model for model in before.values() if id(model) not in kept]
        for model in gone:
            model.hide()
        models = {**self._models, name: dict(sorted(versions.items()))}
        self._models = {name: models[name] for name in sorted(models) if models[name]}
        for model in versions.values():
            model.show()
        for direction in DIRECTIONS:
            if versions:
                self._metrics.queue_length.labels(name, direction).set_function(
                    partial(self._queue_length, name, direction)
                )
            elif before:
                self._metrics.queue_length.remove(name, direction)
        return gone

    def lease(self, name: str, version: int) -> Lease:
        """Finds the model that a request means, and keeps it open: `async with models.lease(...) as model`.

        Raises: see `find`.
        """
        return self.find(name, version).lease()

    def find(self, name: str, version: int) -> ServedModel:
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

    def _queue_length(self, name: str, direction: str) -> int:
        return sum(model.lanes[direction].queue_length for model in self.versions(name).values())
