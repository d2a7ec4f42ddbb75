"""Answers the calls about which models are served: they list, load and unload them, and tell what they have done."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol, TypeVar

from google.protobuf.message import Message

from glowserve.oip import grpc_service_pb2 as oip
from glowserve.v1 import glow_service_pb2 as pb
from glowserve_service.errors import UnsupportedError
from glowserve_service.front.open_inference import descriptions
from glowserve_service.front.open_inference.views import View, Views
from glowserve_service.models.manager import ModelManager
from glowserve_service.models.registry import ServedModels
from glowserve_service.models.served_model import ServedModel
from glowserve_service.models.unserved import Unserved

REQUESTS: tuple[type[Message], ...] = (
    pb.ListModelsRequest,
    pb.LoadModelRequest,
    pb.UnloadModelRequest,
    oip.RepositoryIndexRequest,
    oip.RepositoryModelLoadRequest,
    oip.RepositoryModelUnloadRequest,
    oip.ModelStatisticsRequest,
)
"""The types of the requests that it answers."""

CHANGES = (
    pb.LoadModelRequest,
    pb.UnloadModelRequest,
    oip.RepositoryModelLoadRequest,
    oip.RepositoryModelUnloadRequest,
)
"""The types of those that change what is served."""

R = TypeVar("R", bound=Message)


class Control(Protocol):
    """Answers these requests, in the process that serves the models."""

    async def answer(self, request: Message, kind: type[R]) -> R:
        """The response, of that type, to a request of a type in REQUESTS; raises as ModelManager."""


class ModelControl:
    """Answers them in this process.

    Args:
        models: what is served.
        manager: loads and unloads models.
    """

    def __init__(self, models: ServedModels, manager: ModelManager) -> None:
        self._models, self._manager = models, manager
        self._views = Views(models)
        methods: Sequence[Callable[[Any], Awaitable[Message]]] = (
            self._list,
            self._load,
            self._unload,
            self._index,
            self._repository_load,
            self._repository_unload,
            self._statistics,
        )
        self._methods = dict(zip(REQUESTS, methods, strict=True))

    async def answer(self, request: Message, kind: type[R]) -> R:
        """See Control."""
        response = await self._methods[type(request)](request)
        assert isinstance(response, kind)
        return response

    async def _list(self, _: pb.ListModelsRequest) -> pb.ListModelsResponse:
        return pb.ListModelsResponse(
            models=map(_summary, self._models), not_served=map(_unserved, self._manager.unserved())
        )

    async def _load(self, request: pb.LoadModelRequest) -> pb.LoadModelResponse:
        return pb.LoadModelResponse(models=map(_summary, await self._manager.load(request.name)))

    async def _unload(self, request: pb.UnloadModelRequest) -> pb.UnloadModelResponse:
        await self._manager.unload(request.name)
        return pb.UnloadModelResponse()

    async def _index(self, request: oip.RepositoryIndexRequest) -> oip.RepositoryIndexResponse:
        if request.repository_name:
            raise UnsupportedError(
                f"repository_name is {request.repository_name[:128]!r}; there is one repository, leave it empty"
            )
        entry = oip.RepositoryIndexResponse.ModelIndex
        entries = []
        for view in self._views:
            failure = self._served(view).health.failure
            state = "UNAVAILABLE" if failure else "READY"
            entries.append(entry(name=view.name, version=view.version, state=state, reason=failure))
        for each in self._manager.unserved():
            state = "UNAVAILABLE" if each.refused else "LOADING"
            entries.append(entry(name=each.name, version=str(each.version), state=state, reason=each.reason))
        return oip.RepositoryIndexResponse(
            models=(each for each in entries if each.state == "READY" or not request.ready)
        )

    async def _repository_load(
        self, request: oip.RepositoryModelLoadRequest
    ) -> oip.RepositoryModelLoadResponse:
        await self._manager.load(request.model_name)
        return oip.RepositoryModelLoadResponse()

    async def _repository_unload(
        self, request: oip.RepositoryModelUnloadRequest
    ) -> oip.RepositoryModelUnloadResponse:
        await self._manager.unload(request.model_name)
        return oip.RepositoryModelUnloadResponse()

    async def _statistics(self, request: oip.ModelStatisticsRequest) -> oip.ModelStatisticsResponse:
        views = [self._views.find(request.name, request.version)] if request.name else self._views
        return oip.ModelStatisticsResponse(
            model_stats=(
                descriptions.statistics(view, self._served(view).lanes[view.direction].statistics)
                for view in views
            )
        )

    def _served(self, view: View) -> ServedModel:
        return self._models.find(view.model.name, view.model.version)


def _summary(model: ServedModel) -> pb.ModelSummary:
    failure = model.health.failure
    return pb.ModelSummary(
        model=pb.ModelVersion(name=model.name, version=model.version),
        image=model.manifest.image,
        state=pb.MODEL_STATE_FAILING if failure else pb.MODEL_STATE_SERVING,
        reason=failure,
        classes=model.bundle.classes,
        attributes=model.attributes.names,
    )


def _unserved(version: Unserved) -> pb.ModelSummary:
    state = pb.MODEL_STATE_REFUSED if version.refused else pb.MODEL_STATE_LOADING
    model = pb.ModelVersion(name=version.name, version=version.version)
    return pb.ModelSummary(model=model, state=state, reason=version.reason)
