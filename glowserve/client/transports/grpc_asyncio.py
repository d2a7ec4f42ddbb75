"""Requests over gRPC, for event loops."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc

from glowserve.client.errors import request_errors
from glowserve.client.transports import streams
from glowserve.client.transports.channel import ChannelSettings, sample_timeout
from glowserve.v1 import glow_service_pb2 as pb
from glowserve.v1 import glow_service_pb2_grpc


class AsyncGrpcTransport:
    """Asks a running service; see `AsyncTransport`.

    Args:
        settings: where, and how.

    Raises:
        ValueError: a file cannot be used, or the token would cross a network in the clear.
    """

    def __init__(self, settings: ChannelSettings) -> None:
        self._timeout = settings.timeout
        self._channel, self._metadata = settings.open(grpc.aio)
        self._stub = glow_service_pb2_grpc.GlowServiceStub(self._channel)

    async def score(self, request: pb.ScoreRequest) -> pb.ScoreResponse:
        """See AsyncTransport."""
        response: pb.ScoreResponse = await self._call(self._stub.Score, request)
        return response

    async def score_stream(self, requests: AsyncIterator[pb.ScoreRequest]) -> AsyncIterator[pb.ScoreResponse]:
        """See AsyncTransport; the timeout is for each response."""

        def open_stream(requests: AsyncIterator[pb.ScoreRequest]) -> Any:
            return self._stub.ScoreStream(requests, metadata=self._metadata)

        with streams.stream_errors():
            async for response in streams.answers_async(open_stream, requests, self._timeout):
                yield response

    async def sample(self, request: pb.SampleRequest) -> AsyncIterator[pb.SampleResponse]:
        """See AsyncTransport; the timeout grows with the number of samples."""
        with request_errors():
            stream = self._stub.Sample(
                request, timeout=sample_timeout(self._timeout, request.n), metadata=self._metadata
            )
            async for response in stream:
                yield response

    async def encode(self, request: pb.EncodeRequest) -> pb.EncodeResponse:
        """See AsyncTransport."""
        response: pb.EncodeResponse = await self._call(self._stub.Encode, request)
        return response

    async def decode(self, request: pb.DecodeRequest) -> pb.DecodeResponse:
        """See AsyncTransport."""
        response: pb.DecodeResponse = await self._call(self._stub.Decode, request)
        return response

    async def interpolate(self, request: pb.InterpolateRequest) -> pb.InterpolateResponse:
        """See AsyncTransport."""
        response: pb.InterpolateResponse = await self._call(self._stub.Interpolate, request)
        return response

    async def list_models(self, request: pb.ListModelsRequest) -> pb.ListModelsResponse:
        """See AsyncTransport."""
        response: pb.ListModelsResponse = await self._call(self._stub.ListModels, request)
        return response

    async def get_model(self, request: pb.GetModelRequest) -> pb.GetModelResponse:
        """See AsyncTransport."""
        response: pb.GetModelResponse = await self._call(self._stub.GetModel, request)
        return response

    async def close(self) -> None:
        """Ends the connection."""
        await self._channel.close()

    async def _call(self, method: Any, request: Any) -> Any:
        with request_errors():
            return await method(request, timeout=self._timeout, metadata=self._metadata)
