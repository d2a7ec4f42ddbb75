"""GlowService: translates between messages and arrays. What it promises is in glow_service.proto."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import grpc
import numpy as np

from glowserve import messages
from glowserve.images import UInt8Array, encode_png
from glowserve.runtime import inputs, scoring
from glowserve.runtime.engine import Float32Array, Reverse
from glowserve.runtime.errors import GlowserveError, InvalidRequestError, NotFiniteError
from glowserve.runtime.interpolation import interpolate
from glowserve.runtime.randomness import latents
from glowserve.v1 import glow_service_pb2 as pb
from glowserve.v1 import glow_service_pb2_grpc
from glowserve_service.config import ServiceConfig
from glowserve_service.front.call import SERIALIZATION, current
from glowserve_service.front.score_path import score
from glowserve_service.front.streams import Entrance, in_order
from glowserve_service.models.manager import ModelManager, Unserved
from glowserve_service.models.models import Models, ServedModel
from glowserve_service.scheduling.cpu_pool import Preparer

Context = grpc.aio.ServicerContext[Any, Any]


class GlowServicer(glow_service_pb2_grpc.GlowServiceServicer):
    """Answers calls.

    Args:
        models: what is served.
        manager: what decides that.
        config: the service's.
        preparer: where pictures are decoded and noise is drawn.
    """

    def __init__(
        self,
        models: Models,
        manager: ModelManager,
        config: ServiceConfig,
        preparer: Preparer,
    ) -> None:
        self._models = models
        self._manager = manager
        self._config = config
        self._preparer = preparer

    async def Score(self, request: pb.ScoreRequest, context: Context) -> pb.ScoreResponse:  # noqa: N802
        """See GlowService.Score."""
        return await self._score(request, self._find(request.model))

    async def ScoreStream(  # noqa: N802
        self, request_iterator: AsyncIterator[pb.ScoreRequest], context: Context
    ) -> AsyncIterator[pb.ScoreResponse]:
        """See GlowService.ScoreStream."""
        begun, answered, entrance = itertools.count(), 0, Entrance()

        async def answer(request: pb.ScoreRequest) -> pb.ScoreResponse:
            admitted = next(begun) > 0
            # Held for this request alone: a stream may outlive many versions.
            with ExitStack() as stack:
                model = self._models.find(request.model.name, request.model.version)
                stack.callback(model.hold())
                return await self._score(request, model, admitted=admitted, long=True, entrance=entrance)

        try:
            async for response in in_order(request_iterator, answer, 1, self._part_of_a_call):
                yield response
                answered += 1
        except GlowserveError as error:
            error.place(f"requests[{answered}]")
            raise

    async def Sample(self, request: pb.SampleRequest, context: Context) -> AsyncIterator[pb.SampleResponse]:  # noqa: N802
        """See GlowService.Sample."""
        model = self._find(request.model)
        inputs.check_samples(request.n, self._config.max_samples_per_call)
        current().images = request.n
        temperature = request.temperature if request.HasField("temperature") else 1.0
        inputs.check_temperature(temperature)
        _check_format(request.format)
        seed = request.seed if request.HasField("seed") else secrets.randbits(64)

        entrance = Entrance()

        async def draw(first: int) -> pb.SampleResponse:
            n = min(self._config.max_batch_size, request.n - first)
            size = model.manifest.image.latent_size
            latent = await self._preparer.run(
                latents, seed, first, n, size, temperature, images=n, size=4 * n * size, admitted=first > 0
            )
            long = request.n > self._config.max_batch_size
            await entrance.turn(first=first == 0)
            decoded = await model.reverse(latent, admitted=first > 0, long=long)
            self._require_finite(decoded, model, first=first, what="temperature: sample")
            images = await self._write_images(decoded.image, request.format)
            return pb.SampleResponse(model=_version(model), seed=seed, first_index=first, images=images)

        async def firsts() -> AsyncIterator[int]:
            for first in range(0, request.n, self._config.max_batch_size):
                yield first

        # As many batches are under way as can run side by side, and none is drawn before the caller has room.
        async for response in in_order(firsts(), draw, model.instances):
            yield response

    async def Encode(self, request: pb.EncodeRequest, context: Context) -> pb.EncodeResponse:  # noqa: N802
        """See GlowService.Encode."""
        model = self._find(request.model)
        images = await self._read_images(request.images, model)
        latent = await self._encode(images, model)
        decoded = await model.reverse(latent, admitted=True)
        mismatched = scoring.mismatched_values(images, decoded, model.manifest.image.n_bits)
        model.inexact_encodings.inc(int((mismatched > 0).sum()))
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
        self._require_finite(decoded, model)
        return pb.DecodeResponse(
            model=_version(model), images=await self._write_images(decoded.image, request.format)
        )

    async def Interpolate(  # noqa: N802
        self, request: pb.InterpolateRequest, context: Context
    ) -> pb.InterpolateResponse:
        """See GlowService.Interpolate."""
        model = self._find(request.model)
        inputs.check_steps(request.steps, self._config.max_images_per_call)
        _check_format(request.format)
        inputs.check_pair(request.images)
        images = await self._read_images(request.images, model)
        current().images += request.steps
        first, last = await self._encode(images, model)
        decoded = await model.reverse(interpolate(first, last, request.steps), admitted=True)
        self._require_finite(decoded, model, what="images: step")
        return pb.InterpolateResponse(
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

    def _part_of_a_call(self, request: pb.ScoreRequest) -> float:
        images = request.images
        n = images.tensor.shape[0] if images.tensor.shape else len(images.encoded.data)
        return self._config.share_of_a_call(n, request.ByteSize())

    async def _score(
        self, request: pb.ScoreRequest, model: ServedModel, *, admitted: bool = False, **part: Any
    ) -> pb.ScoreResponse:
        seed = request.seed if request.HasField("seed") else scoring.DEFAULT_SEED
        images = await self._read_images(request.images, model, admitted=admitted)
        scores = await score(
            images,
            seed,
            model,
            self._preparer,
            prepared=request.images.HasField("encoded"),
            admitted=admitted,
            **part,
        )
        return messages.scores_message(scores)

    async def _encode(self, images: UInt8Array, model: ServedModel) -> Float32Array:
        _, latent = await model.forward(images, np.full(images.shape, scoring.ENCODING_NOISE, np.float32))
        with self._counting_not_finite(model):
            scoring.require_finite_latents(latent)
        return latent

    async def _read_images(
        self, images: pb.Images, model: ServedModel, *, admitted: bool = False
    ) -> UInt8Array:
        def read() -> UInt8Array:
            return inputs.read_images(
                images,
                model.bundle,
                max_images=self._config.max_images_per_call,
                max_pixels=self._config.max_pixels_per_call,
            )

        if images.HasField("tensor"):  # it is only looked at
            array = read()
            current().images += len(array)
            return array
        n = min(len(images.encoded.data), self._config.max_images_per_call)
        current().images += n
        # A picture may take long to decode, whatever its length in bytes.
        return await self._preparer.run(
            read, images=n, size=self._config.max_pixels_per_call, admitted=admitted
        )

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

    def _require_finite(self, decoded: Reverse, model: ServedModel, **names: Any) -> None:
        with self._counting_not_finite(model):
            scoring.require_finite_images(decoded, **names)

    @contextmanager
    def _counting_not_finite(self, model: ServedModel) -> Iterator[None]:
        try:
            yield
        except NotFiniteError as error:
            model.not_finite(current().method).inc(error.images)
            raise


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
