"""GlowService: leases models for calls. `glowserve.runtime.glow_service` answers them.

What the calls promise is in glow_service.proto.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from functools import partial
from typing import Any

import numpy as np

from glowserve import messages
from glowserve.runtime import glow_service
from glowserve.runtime.errors import GlowserveError, ModelNotFoundError
from glowserve.runtime.image_set import ImageSet, SetPart
from glowserve.runtime.runner import Work
from glowserve.v1 import glow_service_pb2 as pb
from glowserve.v1 import glow_service_pb2_grpc
from glowserve_service.config import ServiceConfig
from glowserve_service.errors import UnavailableError
from glowserve_service.front.call import Call
from glowserve_service.front.call_runner import CallRunner
from glowserve_service.front.ordered import in_order
from glowserve_service.models.manager import ModelManager
from glowserve_service.models.registry import ModelRegistry
from glowserve_service.models.served_model import ServedModel
from glowserve_service.models.unserved import Unserved
from glowserve_service.scheduling.cpu_pool import CpuPool
from glowserve_service.scheduling.ticket import AdmissionGate, Ticket


class GlowServicer(glow_service_pb2_grpc.GlowServiceServicer):
    """Answers calls; the middleware passes a `Call` in place of gRPC's context.

    Args:
        models: what is served.
        manager: loads and unloads models.
        config: the service's.
        pool: where pictures are decoded and noise is drawn.
    """

    def __init__(
        self, models: ModelRegistry, manager: ModelManager, config: ServiceConfig, pool: CpuPool
    ) -> None:
        self._models = models
        self._manager = manager
        self._config = config
        self._limits = config.limits
        self._pool = pool

    async def Score(self, request: pb.ScoreRequest, call: Call) -> pb.ScoreResponse:  # noqa: N802
        """See GlowService.Score."""
        return await self._score(request, call, call.ticket)

    async def ScoreStream(  # noqa: N802
        self, requests: AsyncIterator[pb.ScoreRequest], call: Call
    ) -> AsyncIterator[pb.ScoreResponse]:
        """See GlowService.ScoreStream."""
        tickets, answered = _tickets(call, long=True), 0

        async def answer(request: pb.ScoreRequest) -> pb.ScoreResponse:
            # The model is leased for this request alone: a stream may outlive many versions.
            return await self._score(request, call, next(tickets))

        try:
            async with aclosing(in_order(requests, answer, 1, partial(self._share, call))) as responses:
                async for response in responses:
                    yield response
                    answered += 1
        except GlowserveError as error:
            error.place(f"requests[{answered}]")
            raise

    async def Explain(self, request: pb.ExplainRequest, call: Call) -> pb.ExplainResponse:  # noqa: N802
        """See GlowService.Explain."""
        async with self._runner(request.model, call, call.ticket) as runner:
            response = await glow_service.explain(runner, request)
            runner.count_not_finite(sum(not each.finite for each in response.explanations))
            return response

    async def Sample(self, request: pb.SampleRequest, call: Call) -> AsyncIterator[pb.SampleResponse]:  # noqa: N802
        """See GlowService.Sample."""
        async with self._runner(request.model, call, call.ticket) as runner:
            sample = glow_service.SampleCall(runner, request)
            tickets = _tickets(call, long=request.n > self._limits.max_batch_size)

            async def answer(part: range) -> list[pb.SampleResponse]:
                return await sample.answer(runner.part(next(tickets)), part)

            async def parts() -> AsyncIterator[range]:
                for part in sample.parts():
                    yield part

            # As many batches are under way as run side by side, and none begins before the caller has room.
            async with aclosing(in_order(parts(), answer, runner.model.instances)) as answers:
                async for responses in answers:
                    for response in responses:
                        runner.count_not_finite(len(response.not_finite))
                        yield response
                    sample.sent(responses)

    async def ScoreSet(  # noqa: N802
        self, requests: AsyncIterator[pb.ScoreSetRequest], call: Call
    ) -> pb.ScoreSetResponse:
        """See GlowService.ScoreSet."""
        images, tickets, added = ImageSet(), _tickets(call, long=True), 0

        async def score(request: pb.ScoreSetRequest) -> SetPart:
            # The model is leased for this request alone, as in ScoreStream.
            async with self._set_runner(images, request.model, call, next(tickets)) as runner:
                part = await images.score(runner, request)
                runner.count_not_finite(part.not_finite)
                return part

        try:
            async with aclosing(in_order(requests, score, 1, partial(self._share, call))) as parts:
                async for part in parts:
                    images.add(part)
                    call.holding.answered()
                    added += 1
        except UnavailableError:  # not because of this request
            raise
        except GlowserveError as error:
            error.place(f"requests[{added}]")
            raise
        return await images.response(partial(self._compute, call))

    async def Encode(self, request: pb.EncodeRequest, call: Call) -> pb.EncodeResponse:  # noqa: N802
        """See GlowService.Encode."""
        async with self._runner(request.model, call, call.ticket) as runner:
            response = await glow_service.encode(runner, request)
            runner.model.inexact_encodings.inc(int(np.count_nonzero(response.mismatched_values)))
            return response

    async def Decode(self, request: pb.DecodeRequest, call: Call) -> pb.DecodeResponse:  # noqa: N802
        """See GlowService.Decode."""
        async with self._runner(request.model, call, call.ticket) as runner:
            return await glow_service.decode(runner, request)

    async def Interpolate(self, request: pb.InterpolateRequest, call: Call) -> pb.InterpolateResponse:  # noqa: N802
        """See GlowService.Interpolate."""
        async with self._runner(request.model, call, call.ticket) as runner:
            return await glow_service.interpolate(runner, request)

    async def ListModels(self, request: pb.ListModelsRequest, call: Call) -> pb.ListModelsResponse:  # noqa: N802
        """See GlowService.ListModels."""
        return pb.ListModelsResponse(
            models=map(_summary, self._models), not_served=map(_unserved, self._manager.unserved())
        )

    async def LoadModel(self, request: pb.LoadModelRequest, call: Call) -> pb.LoadModelResponse:  # noqa: N802
        """See GlowService.LoadModel."""
        return pb.LoadModelResponse(models=map(_summary, await self._manager.load(request.name)))

    async def UnloadModel(self, request: pb.UnloadModelRequest, call: Call) -> pb.UnloadModelResponse:  # noqa: N802
        """See GlowService.UnloadModel."""
        await self._manager.unload(request.name)
        return pb.UnloadModelResponse()

    async def GetModel(self, request: pb.GetModelRequest, call: Call) -> pb.GetModelResponse:  # noqa: N802
        """See GlowService.GetModel."""
        async with self._runner(request.model, call, call.ticket) as runner:
            return glow_service.get_model(runner.model.manifest, runner.model.placements)

    def _runner(self, spec: pb.ModelSpec, call: Call, ticket: Ticket) -> CallRunner:
        return CallRunner(self._models.lease(spec.name, spec.version), call, ticket, self._pool, self._limits)

    def _set_runner(self, images: ImageSet, spec: pb.ModelSpec, call: Call, ticket: Ticket) -> CallRunner:
        """For a request of a set, all of which one version scores."""
        selected = images.select(spec)
        try:
            model = self._models.find(selected.name, selected.version)
        except ModelNotFoundError:
            if images.scorer is None:
                raise
            model = None
        if model is None or images.scorer not in (None, model.scorer):
            raise UnavailableError(
                f"{selected.name} version {selected.version} was replaced before the set was complete; send the set "
                "again"
            )
        return CallRunner(model.lease(), call, ticket, self._pool, self._limits)

    async def _compute(self, call: Call, work: Work[Any]) -> Any:
        """Does CPU work of a call that has no request under way."""
        with call.timed(work.stage):
            return await self._pool.run(work.function, call.ticket.later, images=work.images, size=work.size)

    def _share(self, call: Call, request: pb.ScoreRequest | pb.ScoreSetRequest) -> float:
        """The share of what one call may bring that the newest request of a stream is."""
        return self._config.share_of_a_call(messages.count(request.images), call.holding.newest)

    async def _score(self, request: pb.ScoreRequest, call: Call, ticket: Ticket) -> pb.ScoreResponse:
        async with self._runner(request.model, call, ticket) as runner:
            response = await glow_service.score(runner, request)
            runner.count_not_finite(len(response.scores) - sum([score.finite for score in response.scores]))
            return response


def _tickets(call: Call, *, long: bool) -> Iterator[Ticket]:
    """One for each piece of work of a call that has several under way at once."""
    gate = AdmissionGate()
    yield Ticket(call.deadline, first=True, long=long, gate=gate)
    later = Ticket(call.deadline, first=False, long=long, gate=gate)
    while True:
        yield later


def _summary(model: ServedModel) -> pb.ModelSummary:
    failure = model.health.failure
    return pb.ModelSummary(
        model=pb.ModelVersion(name=model.name, version=model.version),
        image=model.manifest.image,
        state=pb.MODEL_STATE_FAILING if failure else pb.MODEL_STATE_SERVING,
        reason=failure,
        classes=model.bundle.classes,
    )


def _unserved(version: Unserved) -> pb.ModelSummary:
    state = pb.MODEL_STATE_REFUSED if version.refused else pb.MODEL_STATE_LOADING
    model = pb.ModelVersion(name=version.name, version=version.version)
    return pb.ModelSummary(model=model, state=state, reason=version.reason)
