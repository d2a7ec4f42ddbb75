"""The interface between a client and what answers its requests: one method for each method of GlowService.

Requests and responses are the messages of protos/glowserve/v1/glow_service.proto, which explains each method.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator
from typing import Protocol

from glowserve.v1 import glow_service_pb2 as pb


class RepeatableRequests(Protocol):
    """The requests of a call that has one response."""

    @property
    def repeatable(self) -> bool:
        """Whether they can be iterated over once more."""

    def __iter__(self) -> Iterator[pb.ScoreSetRequest]:
        """All of them, from the first."""


class Transport(Protocol):
    """Carries the requests of `Client`. Methods may be called from any thread; all but `close` may raise RequestError.

    The methods that return several responses are generators: `close` on a generator cancels its outstanding requests.
    """

    def score(self, request: pb.ScoreRequest) -> pb.ScoreResponse:
        """Carries GlowService.Score."""

    def score_stream(self, requests: Iterator[pb.ScoreRequest]) -> Generator[pb.ScoreResponse, None, None]:
        """Carries GlowService.ScoreStream. Reads requests as responses are taken, at most a few ahead."""

    def sample(self, request: pb.SampleRequest) -> Generator[pb.SampleResponse, None, None]:
        """Carries GlowService.Sample."""

    def explain(self, request: pb.ExplainRequest) -> pb.ExplainResponse:
        """Carries GlowService.Explain."""

    def score_set(self, requests: RepeatableRequests) -> pb.ScoreSetResponse:
        """Carries GlowService.ScoreSet. Reads requests in the caller's thread, at most a few ahead."""

    def encode(self, request: pb.EncodeRequest) -> pb.EncodeResponse:
        """Carries GlowService.Encode."""

    def decode(self, request: pb.DecodeRequest) -> pb.DecodeResponse:
        """Carries GlowService.Decode."""

    def interpolate(self, request: pb.InterpolateRequest) -> pb.InterpolateResponse:
        """Carries GlowService.Interpolate."""

    def manipulate(self, request: pb.ManipulateRequest) -> pb.ManipulateResponse:
        """Carries GlowService.Manipulate."""

    def list_models(self, request: pb.ListModelsRequest) -> pb.ListModelsResponse:
        """Carries GlowService.ListModels."""

    def get_model(self, request: pb.GetModelRequest) -> pb.GetModelResponse:
        """Carries GlowService.GetModel."""

    def close(self) -> None:
        """Releases connections and memory. No call may follow."""


class AsyncTransport(Protocol):
    """`Transport` for event loops: carries the requests of `AsyncClient`."""

    async def score(self, request: pb.ScoreRequest) -> pb.ScoreResponse:
        """Carries GlowService.Score."""

    def score_stream(
        self, requests: AsyncIterator[pb.ScoreRequest]
    ) -> AsyncGenerator[pb.ScoreResponse, None]:
        """Carries GlowService.ScoreStream. Reads requests as responses are taken, at most a few ahead."""

    def sample(self, request: pb.SampleRequest) -> AsyncGenerator[pb.SampleResponse, None]:
        """Carries GlowService.Sample."""

    async def explain(self, request: pb.ExplainRequest) -> pb.ExplainResponse:
        """Carries GlowService.Explain."""

    async def score_set(self, requests: RepeatableRequests) -> pb.ScoreSetResponse:
        """Carries GlowService.ScoreSet. Reads requests in a thread, at most a few ahead."""

    async def encode(self, request: pb.EncodeRequest) -> pb.EncodeResponse:
        """Carries GlowService.Encode."""

    async def decode(self, request: pb.DecodeRequest) -> pb.DecodeResponse:
        """Carries GlowService.Decode."""

    async def interpolate(self, request: pb.InterpolateRequest) -> pb.InterpolateResponse:
        """Carries GlowService.Interpolate."""

    async def manipulate(self, request: pb.ManipulateRequest) -> pb.ManipulateResponse:
        """Carries GlowService.Manipulate."""

    async def list_models(self, request: pb.ListModelsRequest) -> pb.ListModelsResponse:
        """Carries GlowService.ListModels."""

    async def get_model(self, request: pb.GetModelRequest) -> pb.GetModelResponse:
        """Carries GlowService.GetModel."""

    async def close(self) -> None:
        """Releases connections and memory. No call may follow."""
