"""The Open Inference Protocol, before the same models. What it promises is in oip/grpc_service.proto."""

from __future__ import annotations

import importlib.metadata
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np

from glowserve.oip import grpc_service_pb2 as pb
from glowserve.oip import grpc_service_pb2_grpc, model_config_pb2
from glowserve.runtime import inputs, scoring
from glowserve.runtime.errors import (
    GlowserveError,
    InvalidRequestError,
    ModelNotFoundError,
    NotFiniteError,
)
from glowserve.runtime.randomness import latents
from glowserve_service.config import ServiceConfig
from glowserve_service.errors import UnsupportedError
from glowserve_service.front import open_inference_tensors as oip_tensors
from glowserve_service.front.call import current
from glowserve_service.front.middleware import INTERNAL_ERROR
from glowserve_service.front.open_inference_tensors import Tensor
from glowserve_service.front.score_path import score
from glowserve_service.front.streams import in_order
from glowserve_service.models.manager import ModelManager
from glowserve_service.models.models import Models, ServedModel
from glowserve_service.observability.statistics import Counts, Duration
from glowserve_service.scheduling.batcher import Array
from glowserve_service.scheduling.cpu_pool import Preparer

SERVICE_NAME = "inference.GRPCInferenceService"
READINESS_METHODS = frozenset({"ServerLive", "ServerReady", "ModelReady"})
"""They have an answer while the server starts or stops, too."""

_SAMPLE = ".sample"
_PLATFORM, _BACKEND = "onnxruntime_onnx", "onnxruntime"
_EXTENSIONS = ("model_repository", "model_configuration", "statistics")
_VERSION = re.compile(r"[1-9][0-9]{0,17}")

log = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]
Infer = Callable[[ServedModel, pb.ModelInferRequest, list[Array]], Awaitable[dict[str, Array]]]


@dataclass(frozen=True)
class _View:
    """One of the protocol's models: a way through one of ours."""

    name: str
    model: ServedModel
    counts: Counts
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    infer: Infer
    """From arrays in the order of `inputs` to arrays by the names of `outputs`."""

    @property
    def version(self) -> str:
        return str(self.model.manifest.version)


class OipServicer(grpc_service_pb2_grpc.GRPCInferenceServiceServicer):
    """Answers calls.

    Args:
        models: what is served.
        manager: what decides that.
        config: the service's.
        preparer: where noise is drawn and long requests are read.
        is_ready: whether a model answers, by its name; for "" whether every one does.
    """

    def __init__(
        self,
        models: Models,
        manager: ModelManager,
        config: ServiceConfig,
        preparer: Preparer,
        is_ready: Callable[[str], bool],
    ) -> None:
        self._models = models
        self._manager = manager
        self._config = config
        self._preparer = preparer
        self._is_ready = is_ready

    async def ServerLive(self, request: pb.ServerLiveRequest, context: Context) -> pb.ServerLiveResponse:  # noqa: N802
        """See GRPCInferenceService.ServerLive."""
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(self, request: pb.ServerReadyRequest, context: Context) -> pb.ServerReadyResponse:  # noqa: N802
        """See GRPCInferenceService.ServerReady."""
        return pb.ServerReadyResponse(ready=self._is_ready(""))

    async def ModelReady(self, request: pb.ModelReadyRequest, context: Context) -> pb.ModelReadyResponse:  # noqa: N802
        """See GRPCInferenceService.ModelReady."""
        try:
            view = self._find(request.name, request.version)
        except ModelNotFoundError:
            return pb.ModelReadyResponse(ready=False)
        return pb.ModelReadyResponse(ready=self._is_ready(view.model.name))

    async def ServerMetadata(  # noqa: N802
        self, request: pb.ServerMetadataRequest, context: Context
    ) -> pb.ServerMetadataResponse:
        """See GRPCInferenceService.ServerMetadata."""
        return pb.ServerMetadataResponse(
            name="glowserve", version=importlib.metadata.version("glowserve"), extensions=_EXTENSIONS
        )

    async def ModelMetadata(  # noqa: N802
        self, request: pb.ModelMetadataRequest, context: Context
    ) -> pb.ModelMetadataResponse:
        """See GRPCInferenceService.ModelMetadata."""
        view = self._find(request.name, request.version)
        return pb.ModelMetadataResponse(
            name=view.name,
            versions=map(str, self._models.versions(view.model.name)),
            platform=_PLATFORM,
            inputs=map(_tensor_metadata, view.inputs),
            outputs=map(_tensor_metadata, view.outputs),
        )

    async def ModelConfig(self, request: pb.ModelConfigRequest, context: Context) -> pb.ModelConfigResponse:  # noqa: N802
        """See GRPCInferenceService.ModelConfig."""
        return pb.ModelConfigResponse(config=self._model_config(self._find(request.name, request.version)))

    async def ModelStatistics(  # noqa: N802
        self, request: pb.ModelStatisticsRequest, context: Context
    ) -> pb.ModelStatisticsResponse:
        """See GRPCInferenceService.ModelStatistics."""
        views = [self._find(request.name, request.version)] if request.name else self._views()
        return pb.ModelStatisticsResponse(model_stats=map(_statistics, views))

    async def ModelInfer(self, request: pb.ModelInferRequest, context: Context) -> pb.ModelInferResponse:  # noqa: N802
        """See GRPCInferenceService.ModelInfer."""
        return await self._infer(request)

    async def ModelStreamInfer(  # noqa: N802
        self, request_iterator: AsyncIterator[pb.ModelInferRequest], context: Context
    ) -> AsyncIterator[pb.ModelStreamInferResponse]:
        """See GRPCInferenceService.ModelStreamInfer."""
        async for answer in in_order(request_iterator, self._answer, 1, self._part_of_a_call):
            yield answer

    async def RepositoryIndex(  # noqa: N802
        self, request: pb.RepositoryIndexRequest, context: Context
    ) -> pb.RepositoryIndexResponse:
        """See GRPCInferenceService.RepositoryIndex."""
        if request.repository_name:
            raise UnsupportedError(
                f"repository_name is {request.repository_name[:128]!r}; there is one repository, leave it empty"
            )
        entry = pb.RepositoryIndexResponse.ModelIndex
        entries = []
        for view in self._views():
            failure = view.model.condition.failure
            state = "UNAVAILABLE" if failure else "READY"
            entries.append(entry(name=view.name, version=view.version, state=state, reason=failure))
        for each in self._manager.unserved():
            state = "UNAVAILABLE" if each.refused else "LOADING"
            entries.append(entry(name=each.name, version=str(each.version), state=state, reason=each.reason))
        return pb.RepositoryIndexResponse(
            models=(each for each in entries if each.state == "READY" or not request.ready)
        )

    async def RepositoryModelLoad(  # noqa: N802
        self, request: pb.RepositoryModelLoadRequest, context: Context
    ) -> pb.RepositoryModelLoadResponse:
        """See GRPCInferenceService.RepositoryModelLoad."""
        await self._manager.load(request.model_name)
        return pb.RepositoryModelLoadResponse()

    async def RepositoryModelUnload(  # noqa: N802
        self, request: pb.RepositoryModelUnloadRequest, context: Context
    ) -> pb.RepositoryModelUnloadResponse:
        """See GRPCInferenceService.RepositoryModelUnload."""
        await self._manager.unload(request.model_name)
        return pb.RepositoryModelUnloadResponse()

    def _views(self) -> Iterator[_View]:
        names = {model.name for model in self._models}
        for model in self._models:
            yield self._scorer(model)
            if model.name + _SAMPLE not in names:
                yield self._sampler(model)

    def _find(self, name: str, version: str) -> _View:
        if version and not _VERSION.fullmatch(version):
            raise InvalidRequestError(
                f"the model's version is {version[:128]!r}; it must be a number, or empty for the newest",
                "model_version",
            )
        names = {model.name for model in self._models}
        base = name if name in names else name.removesuffix(_SAMPLE)
        if base not in names:
            served = ", ".join(view.name for view in self._views())
            raise ModelNotFoundError(f"the model {name[:128]!r} is not served; served are {served}")
        model = self._models.find(base, int(version or 0))
        return self._scorer(model) if base == name else self._sampler(model)

    def _scorer(self, model: ServedModel) -> _View:
        image = Tensor("image", "UINT8", model.bundle.shape)
        scores = tuple(Tensor(name, "FP64", ()) for name in ("log_likelihood", "bits_per_dim", "percentile"))
        return _View(model.name, model, model.forward_counts, (image,), scores, self._score)

    def _sampler(self, model: ServedModel) -> _View:
        rows = Tensor("seed", "UINT64", (1,)), Tensor("temperature", "FP32", (1,))
        image = Tensor("image", "UINT8", model.bundle.shape)
        return _View(model.name + _SAMPLE, model, model.reverse_counts, rows, (image,), self._sample)

    def _part_of_a_call(self, request: pb.ModelInferRequest) -> float:
        return self._config.share_of_a_call(_rows(request), request.ByteSize())

    async def _answer(self, request: pb.ModelInferRequest) -> pb.ModelStreamInferResponse:
        try:
            response = pb.ModelStreamInferResponse(infer_response=await self._infer(request))
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

    async def _infer(self, request: pb.ModelInferRequest) -> pb.ModelInferResponse:
        view = self._find(request.model_name, request.model_version)
        with ExitStack() as stack:
            stack.callback(view.model.hold())
            oip_tensors.check_supported(request)
            outputs = oip_tensors.read_outputs(request, view.outputs)
            rows = await self._read_inputs(request, view)
            current().images += len(rows[0])
            arrays = await view.infer(view.model, request, rows)
        response = pb.ModelInferResponse(model_name=view.name, model_version=view.version, id=request.id)
        oip_tensors.write_outputs(response, outputs, arrays)
        return response

    async def _read_inputs(self, request: pb.ModelInferRequest, view: _View) -> list[Array]:
        most = self._config.max_images_per_call

        def read() -> list[Array]:
            return oip_tensors.read_inputs(request, view.inputs, max_rows=most)

        if request.raw_input_contents:  # they are only looked at
            return read()
        return await self._preparer.run(
            read, images=min(max(_rows(request), 0), most), size=request.ByteSize()
        )

    async def _score(
        self, model: ServedModel, request: pb.ModelInferRequest, arrays: list[Array]
    ) -> dict[str, Array]:
        """As GlowService.Score."""
        (images,) = arrays
        seed = oip_tensors.read_seed(request, scoring.DEFAULT_SEED)
        # Those that were not raw have been read by the preparer.
        prepared = not request.raw_input_contents
        scores = await score(images, seed, model, self._preparer, prepared=prepared)
        return {
            "log_likelihood": scores.log_likelihood,
            "bits_per_dim": scores.bits_per_dim,
            "percentile": scores.percentile,
        }

    async def _sample(
        self, model: ServedModel, request: pb.ModelInferRequest, arrays: list[Array]
    ) -> dict[str, Array]:
        """The first image of GlowService.Sample for each row."""
        rows = list(zip(*(array[:, 0].tolist() for array in arrays), strict=True))
        field = f"inputs[{[tensor.name for tensor in request.inputs].index('temperature')}]"
        for _, temperature in rows:
            inputs.check_temperature(temperature, field)
        size = model.manifest.image.latent_size

        def draw() -> Array:
            return np.concatenate([latents(seed, 0, 1, size, temperature) for seed, temperature in rows])

        latent = await self._preparer.run(
            draw, images=len(rows), size=4 * size * len(rows), admitted=not request.raw_input_contents
        )
        decoded = await model.reverse(latent)
        try:
            scoring.require_finite_images(decoded, what="input 'temperature': row")
        except NotFiniteError as error:
            model.not_finite(current().method).inc(error.images)
            raise
        return {"image": decoded.image}

    def _model_config(self, view: _View) -> model_config_pb2.ModelConfig:
        config = self._config
        return model_config_pb2.ModelConfig(
            name=view.name,
            platform=_PLATFORM,
            backend=_BACKEND,
            max_batch_size=config.max_images_per_call,
            input=[
                model_config_pb2.ModelInput(
                    name=tensor.name,
                    data_type=f"TYPE_{tensor.datatype}",
                    dims=tensor.row,
                    format=model_config_pb2.ModelInput.FORMAT_NHWC if tensor.name == "image" else None,
                )
                for tensor in view.inputs
            ],
            output=[
                model_config_pb2.ModelOutput(
                    name=tensor.name, data_type=f"TYPE_{tensor.datatype}", dims=tensor.row
                )
                for tensor in view.outputs
            ],
            dynamic_batching=model_config_pb2.ModelDynamicBatching(
                preferred_batch_size=[config.max_batch_size],
                max_queue_delay_microseconds=round(1000 * config.max_queue_delay_ms),
                default_queue_policy=model_config_pb2.ModelQueuePolicy(max_queue_size=config.max_queue_size),
            ),
        )


def _rows(request: pb.ModelInferRequest) -> int:
    """How many images a request says it brings or asks for."""
    return max((tensor.shape[0] for tensor in request.inputs if tensor.shape), default=0)


def _tensor_metadata(tensor: Tensor) -> pb.ModelMetadataResponse.TensorMetadata:
    return pb.ModelMetadataResponse.TensorMetadata(
        name=tensor.name, datatype=tensor.datatype, shape=(-1, *tensor.row)
    )


def _statistics(view: _View) -> pb.ModelStatistics:
    counts = view.counts
    return pb.ModelStatistics(
        name=view.name,
        version=view.version,
        last_inference=round(1000 * counts.last_run),
        inference_count=counts.images,
        execution_count=sum(batches.run.count for batches in counts.batches.values()),
        inference_stats=pb.InferStatistics(
            success=_duration(counts.success),
            fail=_duration(counts.fail),
            queue=_duration(counts.queue),
            compute_input=_duration(counts.compute.join),
            compute_infer=_duration(counts.compute.run),
            compute_output=_duration(counts.compute.part),
        ),
        batch_stats=[
            pb.InferBatchStatistics(
                batch_size=size,
                compute_input=_duration(batches.join),
                compute_infer=_duration(batches.run),
                compute_output=_duration(batches.part),
            )
            for size, batches in sorted(counts.batches.items())
        ],
    )


def _duration(duration: Duration) -> pb.StatisticDuration:
    return pb.StatisticDuration(count=duration.count, ns=round(1e9 * duration.seconds))
