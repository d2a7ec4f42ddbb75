"""The transport of `AsyncClient`: gRPC calls to a running service from an event loop."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

import grpc

from glowserve.client.errors import request_errors
from glowserve.client.transports import streams
from glowserve.client.transports.channel import ChannelSettings, sample_timeout
from glowserve.v1 import glow_service_pb2 as pb
from glowserve.v1 import glow_service_pb2_grpc


class AsyncGrpcTransport:
    """Sends requests to a service; implements `AsyncTransport`.

    Args:
        settings: the target, the timeout, and the protection.

    Raises:
        ValueError: see `ChannelSettings.open`.
    """

    def __init__(self, settings: ChannelSettings) -> None:
        self._timeout = settings.timeout
        self._channel, self._metadata = settings.open(grpc.aio)
        self._stub = glow_service_pb2_grpc.GlowServiceStub(self._channel)

    async def score(self, request: pb.ScoreRequest) -> pb.ScoreResponse:
        """See AsyncTransport."""
        response: pb.ScoreResponse = await self._call(self._stub.Score, request)
        return response

    async def score_stream(
        self, requests: AsyncIterator[pb.ScoreRequest]
    ) -> AsyncGenerator[pb.ScoreResponse, None]:
        """See AsyncTransport. The timeout applies to each response."""

        def open_stream(requests: AsyncIterator[pb.ScoreRequest]) -> Any:
            return self._stub.ScoreStream(requests, metadata=self._metadata)

        responses = streams.responses_async(open_stream, requests, self._timeout)
        with streams.stream_errors():
            async with aclosing(responses):
                async for response in responses:
                    yield response

    async def sample(self, request: pb.SampleRequest) -> AsyncGenerator[pb.SampleResponse, None]:
        """See AsyncTransport. The timeout applies to the whole stream, and grows with the number of samples."""
        timeout = sample_timeout(self._timeout, request.n)
        with request_errors():
            call = self._stub.Sample(request, timeout=timeout, metadata=self._metadata)
            try:
                async for response in call:
                    yield response
            finally:
                call.cancel()

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
        """Closes the connection. Outstanding calls are cancelled."""
        await self._channel.close()

    async def _call(self, method: Any, request: Any) -> Any:
        with request_errors():
            return await method(request, timeout=self._timeout, metadata=self._metadata)
