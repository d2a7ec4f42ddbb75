"""Answers the calls of the Open Inference Protocol."""

from __future__ import annotations

import importlib.metadata
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing

from glowserve.oip import grpc_service_pb2 as pb
from glowserve.oip import grpc_service_pb2_grpc
from glowserve.runtime.errors import GlowserveError, ModelNotFoundError
from glowserve_service.config import ServiceConfig
from glowserve_service.front.call import Call
from glowserve_service.front.call_runner import CallRunner
from glowserve_service.front.control import Control
from glowserve_service.front.middleware import INTERNAL_ERROR
from glowserve_service.front.open_inference import descriptions, tensors
from glowserve_service.front.open_inference.views import View, Views
from glowserve_service.front.ordered import in_order
from glowserve_service.models.model import Models
from glowserve_service.scheduling.cpu_pool import CpuPool

SERVICE_NAME = "inference.GRPCInferenceService"
READINESS_METHODS = frozenset({"ServerLive", "ServerReady", "ModelReady"})
"""They are answered while the server starts or stops, too."""

_EXTENSIONS = ("model_repository", "model_configuration", "statistics")

log = logging.getLogger(__name__)


class OpenInferenceServicer(grpc_service_pb2_grpc.GRPCInferenceServiceServicer):
    """Answers calls; the middleware passes a `Call` in place of gRPC's context.

    Args:
        models: what is served.
        control: answers the calls about which models are served.
        config: the service's.
        pool: where noise is drawn and long requests are read.
        is_ready: whether a model answers, by its name; for "" whether every model does.
    """

    def __init__(
        self,
        models: Models,
        control: Control,
        config: ServiceConfig,
        pool: CpuPool,
        is_ready: Callable[[str], bool],
    ) -> None:
        self._models = models
        self._views = Views(models)
        self._control = control
        self._config = config
        self._limits = config.limits
        self._pool = pool
        self._is_ready = is_ready

    async def ServerLive(self, request: pb.ServerLiveRequest, call: Call) -> pb.ServerLiveResponse:  # noqa: N802
        """See GRPCInferenceService.ServerLive."""
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(self, request: pb.ServerReadyRequest, call: Call) -> pb.ServerReadyResponse:  # noqa: N802
        """See GRPCInferenceService.ServerReady."""
        return pb.ServerReadyResponse(ready=self._is_ready(""))

    async def ModelReady(self, request: pb.ModelReadyRequest, call: Call) -> pb.ModelReadyResponse:  # noqa: N802
        """See GRPCInferenceService.ModelReady."""
        try:
            view = self._view(request.name, request.version, call)
        except ModelNotFoundError:
            return pb.ModelReadyResponse(ready=False)
        return pb.ModelReadyResponse(ready=self._is_ready(view.model.name))

    async def ServerMetadata(  # noqa: N802
        self, request: pb.ServerMetadataRequest, call: Call
    ) -> pb.ServerMetadataResponse:
        """See GRPCInferenceService.ServerMetadata."""
        return pb.ServerMetadataResponse(
            name="glowserve", version=importlib.metadata.version("glowserve"), extensions=_EXTENSIONS
        )

    async def ModelMetadata(  # noqa: N802
        self, request: pb.ModelMetadataRequest, call: Call
    ) -> pb.ModelMetadataResponse:
        """See GRPCInferenceService.ModelMetadata."""
        view = self._view(request.name, request.version, call)
        return pb.ModelMetadataResponse(
            name=view.name,
            versions=map(str, self._models.versions(view.model.name)),
            platform=descriptions.PLATFORM,
            inputs=map(descriptions.tensor_metadata, view.inputs),
            outputs=map(descriptions.tensor_metadata, view.outputs),
        )

    async def ModelConfig(self, request: pb.ModelConfigRequest, call: Call) -> pb.ModelConfigResponse:  # noqa: N802
        """See GRPCInferenceService.ModelConfig."""
        view = self._view(request.name, request.version, call)
        return pb.ModelConfigResponse(config=descriptions.model_config(view, self._config))

    async def ModelStatistics(  # noqa: N802
        self, request: pb.ModelStatisticsRequest, call: Call
    ) -> pb.ModelStatisticsResponse:
        """See GRPCInferenceService.ModelStatistics."""
        if request.name:
            self._view(request.name, request.version, call)
        return await self._control.answer(request, pb.ModelStatisticsResponse)

    async def ModelInfer(self, request: pb.ModelInferRequest, call: Call) -> pb.ModelInferResponse:  # noqa: N802
        """See GRPCInferenceService.ModelInfer."""
        return await self._infer(request, call)

    async def ModelStreamInfer(  # noqa: N802
        self, requests: AsyncIterator[pb.ModelInferRequest], call: Call
    ) -> AsyncIterator[pb.ModelStreamInferResponse]:
        """See GRPCInferenceService.ModelStreamInfer."""

        async def answer(request: pb.ModelInferRequest) -> pb.ModelStreamInferResponse:
            return await self._answer(request, call)

        def share(request: pb.ModelInferRequest) -> float:
            return self._config.share_of_a_call(_rows(request), call.holding.newest)

        async with aclosing(in_order(requests, answer, 1, share)) as answers:
            async for response in answers:
                yield response

    async def RepositoryIndex(  # noqa: N802
        self, request: pb.RepositoryIndexRequest, call: Call
    ) -> pb.RepositoryIndexResponse:
        """See GRPCInferenceService.RepositoryIndex."""
        return await self._control.answer(request, pb.RepositoryIndexResponse)

    async def RepositoryModelLoad(  # noqa: N802
        self, request: pb.RepositoryModelLoadRequest, call: Call
    ) -> pb.RepositoryModelLoadResponse:
        """See GRPCInferenceService.RepositoryModelLoad."""
        return await self._control.answer(request, pb.RepositoryModelLoadResponse)

    async def RepositoryModelUnload(  # noqa: N802
        self, request: pb.RepositoryModelUnloadRequest, call: Call
    ) -> pb.RepositoryModelUnloadResponse:
        """See GRPCInferenceService.RepositoryModelUnload."""
        return await self._control.answer(request, pb.RepositoryModelUnloadResponse)

    def _view(self, name: str, version: str, call: Call) -> View:
        view = self._views.find(name, version)
        call.models.add((view.model.name, view.model.version))
        return view

    async def _answer(self, request: pb.ModelInferRequest, call: Call) -> pb.ModelStreamInferResponse:
        try:
            response = pb.ModelStreamInferResponse(infer_response=await self._infer(request, call))
        except Exception as error:
            if not isinstance(error, GlowserveError):
                log.exception("a request of ModelStreamInfer failed")
            message = str(error) if isinstance(error, GlowserveError) else INTERNAL_ERROR
            response = pb.ModelStreamInferResponse(
                error_message=message, infer_response=pb.ModelInferResponse(id=request.id)
            )
        name = "triton_enable_empty_final_response"
        if name in request.parameters and request.parameters[name].bool_param:
            response.infer_response.parameters["triton_final_response"].bool_param = True
        return response

    async def _infer(self, request: pb.ModelInferRequest, call: Call) -> pb.ModelInferResponse:
        view = self._view(request.model_name, request.model_version, call)
        async with CallRunner(view.model.lease(), call, call.ticket, self._pool, self._limits) as runner:
            tensors.check_supported(request)
            outputs = tensors.read_outputs(request, view.named, view.unnamed)
            inputs = tensors.read_inputs(request, view.inputs, max_rows=self._limits.max_images)
            runner.expect(inputs.rows)
            arrays = await view.infer(runner, request, inputs)
        response = pb.ModelInferResponse(model_name=view.name, model_version=view.version, id=request.id)
        tensors.write_outputs(response, outputs, arrays)
        return response


def _rows(request: pb.ModelInferRequest) -> int:
    """How many images a request says it brings or asks for."""
    return max((tensor.shape[0] for tensor in request.inputs if tensor.shape), default=0)
