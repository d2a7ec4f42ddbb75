"""What a client sends its requests through: one function for each call of GlowService, from message to message."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Protocol

from glowserve.v1 import glow_service_pb2 as pb


class Transport(Protocol):
    """Carries the requests of `Client`. Every function may raise `RequestError`; each may be called from any thread."""

    def score(self, request: pb.ScoreRequest) -> pb.ScoreResponse:
        """Carries GlowService.Score."""

    def score_stream(self, requests: Iterator[pb.ScoreRequest]) -> Iterator[pb.ScoreResponse]:
        """Carries GlowService.ScoreStream; reads requests as responses are taken, a few ahead."""

    def sample(self, request: pb.SampleRequest) -> Iterator[pb.SampleResponse]:
        """Carries GlowService.Sample."""

    def encode(self, request: pb.EncodeRequest) -> pb.EncodeResponse:
        """Carries GlowService.Encode."""

    def decode(self, request: pb.DecodeRequest) -> pb.DecodeResponse:
        """Carries GlowService.Decode."""

    def interpolate(self, request: pb.InterpolateRequest) -> pb.InterpolateResponse:
        """Carries GlowService.Interpolate."""

    def list_models(self, request: pb.ListModelsRequest) -> pb.ListModelsResponse:
        """Carries GlowService.ListModels."""

    def get_model(self, request: pb.GetModelRequest) -> pb.GetModelResponse:
        """Carries GlowService.GetModel."""

    def close(self) -> None:
        """Gives back what it holds; no call follows."""

    def abandon(self) -> None:
        """Like `close`, after a call that was interrupted half-way; never waits."""


class AsyncTransport(Protocol):
    """`Transport` for event loops; carries the requests of `AsyncClient`."""

    async def score(self, request: pb.ScoreRequest) -> pb.ScoreResponse:
        """Carries GlowService.Score."""

    def score_stream(self, requests: AsyncIterator[pb.ScoreRequest]) -> AsyncIterator[pb.ScoreResponse]:
        """Carries GlowService.ScoreStream; reads requests as responses are taken, a few ahead."""

    def sample(self, request: pb.SampleRequest) -> AsyncIterator[pb.SampleResponse]:
        """Carries GlowService.Sample."""

    async def encode(self, request: pb.EncodeRequest) -> pb.EncodeResponse:
        """Carries GlowService.Encode."""

    async def decode(self, request: pb.DecodeRequest) -> pb.DecodeResponse:
        """Carries GlowService.Decode."""

    async def interpolate(self, request: pb.InterpolateRequest) -> pb.InterpolateResponse:
        """Carries GlowService.Interpolate."""

    async def list_models(self, request: pb.ListModelsRequest) -> pb.ListModelsResponse:
        """Carries GlowService.ListModels."""

    async def get_model(self, request: pb.GetModelRequest) -> pb.GetModelResponse:
        """Carries GlowService.GetModel."""

    async def close(self) -> None:
        """Gives back what it holds; no call follows."""
