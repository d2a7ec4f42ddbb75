"""GlowService: translates between messages and arrays. What it promises is in glow_service.proto."""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import grpc
import numpy as np

from glowserve import messages
from glowserve.images import UInt8Array, encode_png
from glowserve.v1 import glow_service_pb2 as pb
from glowserve.v1 import glow_service_pb2_grpc
from service import inputs, scoring
from service.call import SERIALIZATION, current
from service.config import ServiceConfig
from service.engine import Reverse
from service.errors import InvalidRequestError, NotFiniteError
from service.manager import ModelManager, Unserved
from service.metrics import Metrics
from service.models import Models, ServedModel
from service.preparer import Preparer
from service.randomness import dequantization_noise, latents

T = TypeVar("T")
Context = grpc.aio.ServicerContext[Any, Any]


class GlowServicer(glow_service_pb2_grpc.GlowServiceServicer):
    """Answers calls.

    Args:
        models: what is served.
        manager: what decides that.
        config: the service's.
        metrics: the service's.
        preparer: where pictures are decoded and noise is drawn.
    """

    def __init__(
        self,
        models: Models,
        manager: ModelManager,
        config: ServiceConfig,
        metrics: Metrics,
        preparer: Preparer,
    ) -> None:
        self._models = models
        self._manager = manager
        self._config = config
        self._metrics = metrics
        self._preparer = preparer

    async def Score(self, request: pb.ScoreRequest, context: Context) -> pb.ScoreResponse:  # noqa: N802
        """See GlowService.Score."""
        model = self._find(request.model)
        seed = request.seed if request.HasField("seed") else scoring.DEFAULT_SEED
        images = await self._read_images(request.images, model)
        noise = await self._preparer.run(
            dequantization_noise,
            seed,
            images,
            images=len(images),
            size=images.nbytes,
            admitted=request.images.HasField("encoded"),  # they have been decoded here before
        )
        log_likelihood, _ = await model.forward(images, noise)
        scores = model.scorer.score(log_likelihood, seed)
        self._metrics.not_finite.labels(model.name, "Score").inc(int((~scores.finite).sum()))
        return messages.scores_message(scores)

    async def Sample(self, request: pb.SampleRequest, context: Context) -> AsyncIterator[pb.SampleResponse]:  # noqa: N802
        """See GlowService.Sample."""
        model = self._find(request.model)
        inputs.check_samples(request.n, self._config.max_samples_per_call)
        current().images = request.n
        temperature = request.temperature if request.HasField("temperature") else 1.0
        inputs.check_temperature(temperature)
        _check_format(request.format)
        seed = request.seed if request.HasField("seed") else secrets.randbits(64)

        async def draw(first: int) -> pb.SampleResponse:
            n = min(self._config.max_batch_size, request.n - first)
            size = model.manifest.image.latent_size
            latent = await self._preparer.run(
                latents, seed, first, n, size, temperature, images=n, size=4 * n * size, admitted=first > 0
            )
            long = request.n > self._config.max_batch_size
            decoded = await model.reverse(latent, admitted=first > 0, long=long)
            self._require_finite(decoded, model, "Sample", first=first, what="temperature: sample")
            images = await self._write_images(decoded.image, request.format)
            return pb.SampleResponse(model=_version(model), seed=seed, first_index=first, images=images)

        # As many batches are under way as can run side by side, and none is drawn before the caller has room.
        async for response in _in_order(
            draw, range(0, request.n, self._config.max_batch_size), model.instances
        ):
            yield response

    async def Encode(self, request: pb.EncodeRequest, context: Context) -> pb.EncodeResponse:  # noqa: N802
        """See GlowService.Encode."""
        model = self._find(request.model)
        images = await self._read_images(request.images, model)
        _, latent = await model.forward(images, np.full(images.shape, scoring.ENCODING_NOISE, np.float32))
        with self._counting_not_finite(model, "Encode"):
            scoring.require_finite_latents(latent)
        decoded = await model.reverse(latent, admitted=True)
        mismatched = scoring.mismatched_values(images, decoded, model.manifest.image.n_bits)
        self._metrics.inexact_encodings.labels(model.name).inc(int((mismatched > 0).sum()))
        return pb.EncodeResponse(
            model=_version(model),
            latents=messages.latent_tensor(latent),
            mismatched_values=mismatched.tolist(),
        )

    async def Decode(self, request: pb.DecodeRequest, context: Context) -> pb.DecodeResponse:  # noqa: N802
        """See GlowService.Decode."""
        model = self._find(request.model)
        _check_format(request.format)
        latent = inputs.read_latents(
            request.latents, model.bundle, max_images=self._config.max_images_per_call
        )
        current().images = len(latent)
        decoded = await model.reverse(latent)
        self._require_finite(decoded, model, "Decode")
        return pb.DecodeResponse(
            model=_version(model), images=await self._write_images(decoded.image, request.format)
        )

    async def ListModels(self, request: pb.ListModelsRequest, context: Context) -> pb.ListModelsResponse:  # noqa: N802
        """See GlowService.ListModels."""
        return pb.ListModelsResponse(
            models=map(_summary, self._models), not_served=map(_unserved, self._manager.unserved())
        )

    async def LoadModel(self, request: pb.LoadModelRequest, context: Context) -> pb.LoadModelResponse:  # noqa: N802
        """See GlowService.LoadModel."""
        return pb.LoadModelResponse(models=map(_summary, await self._manager.load(request.name)))

    async def UnloadModel(self, request: pb.UnloadModelRequest, context: Context) -> pb.UnloadModelResponse:  # noqa: N802
        """See GlowService.UnloadModel."""
        await self._manager.unload(request.name)
        return pb.UnloadModelResponse()

    async def GetModel(self, request: pb.GetModelRequest, context: Context) -> pb.GetModelResponse:  # noqa: N802
        """See GlowService.GetModel."""
        model = self._find(request.model)
        graphs = [
            pb.GraphPlacement(graph=placed.graph, provider=placed.provider, nodes=placed.nodes)
            for placed in model.placements
        ]
        return pb.GetModelResponse(manifest=model.manifest, graphs=graphs)

    def _find(self, spec: pb.ModelSpec) -> ServedModel:
        model = self._models.find(spec.name, spec.version)
        current().releases.append(model.hold())
        return model

    async def _read_images(self, images: pb.Images, model: ServedModel) -> UInt8Array:
        def read() -> UInt8Array:
            return inputs.read_images(
                images,
                model.bundle,
                max_images=self._config.max_images_per_call,
                max_pixels=self._config.max_pixels_per_call,
            )

        if images.HasField("tensor"):  # it is only looked at
            array = read()
            current().images = len(array)
            return array
        n = current().images = min(len(images.encoded.data), self._config.max_images_per_call)
        # A picture may take long to decode, whatever its length in bytes.
        return await self._preparer.run(read, images=n, size=self._config.max_pixels_per_call)

    async def _write_images(self, images: UInt8Array, form: pb.ImageFormat) -> pb.Images:
        if form == pb.IMAGE_FORMAT_RAW:
            return messages.images_message(images)
        files = await self._preparer.run(
            lambda: [encode_png(image) for image in images],
            images=len(images),
            size=images.nbytes,
            admitted=True,
            stage=SERIALIZATION,
        )
        return messages.images_message(files)

    def _require_finite(self, decoded: Reverse, model: ServedModel, method: str, **names: Any) -> None:
        with self._counting_not_finite(model, method):
            scoring.require_finite_images(decoded, **names)

    @contextmanager
    def _counting_not_finite(self, model: ServedModel, method: str) -> Iterator[None]:
        try:
            yield
        except NotFiniteError as error:
            self._metrics.not_finite.labels(model.name, method).inc(error.images)
            raise


async def _in_order(
    function: Callable[[int], Awaitable[T]], arguments: range, ahead: int
) -> AsyncIterator[T]:
    """The results for each argument in order, with `ahead` calls under way at a time."""
    waiting: deque[asyncio.Future[T]] = deque()
    try:
        for argument in arguments:
            waiting.append(asyncio.ensure_future(function(argument)))
            if len(waiting) == ahead:
                yield await waiting.popleft()
        while waiting:
            yield await waiting.popleft()
    finally:
        for future in waiting:
            future.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


def _version(model: ServedModel) -> pb.ModelVersion:
    return pb.ModelVersion(name=model.name, version=model.manifest.version)


def _summary(model: ServedModel) -> pb.ModelSummary:
    failure = model.condition.failure
    state = pb.MODEL_STATE_FAILING if failure else pb.MODEL_STATE_SERVING
    return pb.ModelSummary(model=_version(model), image=model.manifest.image, state=state, reason=failure)


def _unserved(version: Unserved) -> pb.ModelSummary:
    state = pb.MODEL_STATE_REFUSED if version.refused else pb.MODEL_STATE_LOADING
    model = pb.ModelVersion(name=version.name, version=version.version)
    return pb.ModelSummary(model=model, state=state, reason=version.reason)


def _check_format(form: int) -> None:
    if form not in pb.ImageFormat.values():
        known = ", ".join(pb.ImageFormat.keys())
        raise InvalidRequestError(f"format is {form}; it must be one of {known}", "format")
