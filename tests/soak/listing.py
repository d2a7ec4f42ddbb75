"""What ListModels says of the models of a service."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import grpc

from glowserve.v1 import glow_service_pb2 as pb
from glowserve.v1.glow_service_pb2_grpc import GlowServiceStub
from tests.soak.callers import NO_RETRIES

_POLL_SECONDS = 0.02
_PATIENCE_SECONDS = 60.0


async def list_models(target: str) -> pb.ListModelsResponse:
    """The answer of ListModels."""
    async with grpc.aio.insecure_channel(target, NO_RETRIES) as channel:
        return await GlowServiceStub(channel).ListModels(pb.ListModelsRequest())


async def until_served(target: str, version: int) -> None:
    """Waits until a version of the only model is served.

    Raises:
        TimeoutError: that took a minute.
    """
    await _until(target, lambda listed: listed.models[0].model.version == version)


async def until_refused(target: str) -> str:
    """Waits until a version is refused, and returns the reason.

    Raises:
        TimeoutError: that took a minute.
    """
    listed = await _until(target, lambda listed: bool(_refused(listed)))
    return _refused(listed)[0].reason


def _refused(listed: pb.ListModelsResponse) -> list[pb.ModelSummary]:
    return [each for each in listed.not_served if each.state == pb.MODEL_STATE_REFUSED]


async def _until(target: str, holds: Callable[[pb.ListModelsResponse], bool]) -> pb.ListModelsResponse:
    async with asyncio.timeout(_PATIENCE_SECONDS):
        while not holds(listed := await list_models(target)):
            await asyncio.sleep(_POLL_SECONDS)
    return listed
