"""The transport of `AsyncClient`: gRPC calls to a running service from an event loop."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

import grpc

from glowserve.client.errors import RequestError, request_errors
from glowserve.client.transports import streams
from glowserve.client.transports.attempts import Attempts
from glowserve.client.transports.base import RepeatableRequests
from glowserve.client.transports.channel import ChannelFactory, ChannelSettings, sample_timeout
from glowserve.client.transports.forks import PROCESS
from glowserve.client.transports.grpc_transport import GrpcTransport
from glowserve.v1 import glow_service_pb2 as pb
from glowserve.v1 import glow_service_pb2_grpc


class AsyncGrpcTransport:
    """Sends requests to a service; implements `AsyncTransport`.

    Each event loop gets a channel at its first call, since gRPC binds a channel to a loop. The transport may therefore
    be made before any loop runs, and outlive loops. It can be pickled, also within a client.

    Args:
        settings: the target, the timeout, and the protection.

    Raises:
        TypeError, ValueError: see `ChannelFactory`.
    """

    def __init__(self, settings: ChannelSettings) -> None:
        self._settings = settings
        self._factory = ChannelFactory(settings)
        self._channels: dict[asyncio.AbstractEventLoop, _Channel] = {}
        self._inherited: list[_Channel] = []
        self._process = os.getpid()
        self._closed = False
        self._threads: set[GrpcTransport] = set()
        PROCESS.add_transport(self)

    def __reduce__(self) -> tuple[type[AsyncGrpcTransport], tuple[ChannelSettings]]:
        return type(self), (self._settings,)

    async def score(self, request: pb.ScoreRequest) -> pb.ScoreResponse:
        """See AsyncTransport."""
        response: pb.ScoreResponse = await self._call("Score", request)
        return response

    async def score_stream(
        self, requests: AsyncIterator[pb.ScoreRequest]
    ) -> AsyncGenerator[pb.ScoreResponse, None]:
        """See AsyncTransport. The timeout applies to each response."""

        def open_stream(requests: AsyncIterator[pb.ScoreRequest]) -> Any:
            return self._stub().ScoreStream(requests, metadata=self._factory.metadata)

        responses = streams.responses_async(open_stream, requests, self._settings.timeout)
        with PROCESS.call(), streams.stream_errors():
            async with aclosing(responses):
                async for response in responses:
                    yield response

    async def sample(self, request: pb.SampleRequest) -> AsyncGenerator[pb.SampleResponse, None]:
        """See AsyncTransport. The timeout applies to the whole stream, and grows with the number of samples."""
        attempts = Attempts(sample_timeout(self._settings.timeout, request.n))
        begun = False
        while True:
            try:
                with PROCESS.call(), request_errors():
                    call = self._stub().Sample(
                        request, timeout=attempts.seconds_left, metadata=self._factory.metadata
                    )
                    try:
                        async for response in call:
                            begun = True
                            yield response
                        return
                    finally:
                        call.cancel()
            except RequestError as error:
                if begun:
                    raise
                await asyncio.sleep(attempts.pause(error))

    async def explain(self, request: pb.ExplainRequest) -> pb.ExplainResponse:
        """See AsyncTransport."""
        response: pb.ExplainResponse = await self._call("Explain", request)
        return response

    async def score_set(self, requests: RepeatableRequests) -> pb.ScoreSetResponse:
        """See AsyncTransport. The timeout applies to each wait for the service.

        Runs in a thread, over a connection of its own: if the service ends a call while a request is being written,
        grpc.aio can lose its status (see `streams.responses_async`), and there is no response to tell how far it came.
        """
        self._check_open()
        transport = GrpcTransport(self._settings)
        self._threads.add(transport)
        try:
            return await asyncio.to_thread(transport.score_set, requests)
        finally:
            self._threads.discard(transport)
            transport.close()

    async def encode(self, request: pb.EncodeRequest) -> pb.EncodeResponse:
        """See AsyncTransport."""
        response: pb.EncodeResponse = await self._call("Encode", request)
        return response

    async def decode(self, request: pb.DecodeRequest) -> pb.DecodeResponse:
        """See AsyncTransport."""
        response: pb.DecodeResponse = await self._call("Decode", request)
        return response

    async def interpolate(self, request: pb.InterpolateRequest) -> pb.InterpolateResponse:
        """See AsyncTransport."""
        response: pb.InterpolateResponse = await self._call("Interpolate", request)
        return response

    async def manipulate(self, request: pb.ManipulateRequest) -> pb.ManipulateResponse:
        """See AsyncTransport."""
        response: pb.ManipulateResponse = await self._call("Manipulate", request)
        return response

    async def list_models(self, request: pb.ListModelsRequest) -> pb.ListModelsResponse:
        """See AsyncTransport."""
        response: pb.ListModelsResponse = await self._call("ListModels", request)
        return response

    async def get_model(self, request: pb.GetModelRequest) -> pb.GetModelResponse:
        """See AsyncTransport."""
        response: pb.GetModelResponse = await self._call("GetModel", request)
        return response

    async def close(self) -> None:
        """Closes the connections. Outstanding calls are cancelled, those of other loops soon after it returns."""
        self._closed = True
        for transport in [*self._threads]:
            transport.close()
        channels, self._channels = self._channels, {}
        for loop, opened in channels.items():
            if loop is asyncio.get_running_loop():
                await opened.channel.close()
            elif loop.is_running():
                loop.call_soon_threadsafe(opened.close_soon)
            # A loop that does not run has no call under way. Its channel closes when it is freed.

    def free(self) -> None:
        """Frees the channels of loops that have ended."""
        for ended in [each for each in list(self._channels) if each.is_closed()]:
            self._channels.pop(ended, None)

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError("the client is closed; make another")

    def _stub(self) -> glow_service_pb2_grpc.GlowServiceStub:
        """The stub of the running loop's channel."""
        self._check_open()
        if self._process != os.getpid():
            # A child process: the channels are kept, since closing them could close the parent's connections.
            self._inherited.extend(self._channels.values())
            self._process, self._channels = os.getpid(), {}
        loop = asyncio.get_running_loop()
        if loop not in self._channels:
            self.free()
            self._channels[loop] = _Channel(self._factory)
        return self._channels[loop].stub

    async def _call(self, method: str, request: Any) -> Any:
        attempts = Attempts(self._settings.timeout)
        while True:
            try:
                with PROCESS.call(), request_errors():
                    return await getattr(self._stub(), method)(
                        request, timeout=attempts.seconds_left, metadata=self._factory.metadata
                    )
            except RequestError as error:
                await asyncio.sleep(attempts.pause(error))


class _Channel:
    """A channel of one event loop, and its stub."""

    def __init__(self, factory: ChannelFactory) -> None:
        PROCESS.add_loop_channel(self)
        self.channel = factory.open(grpc.aio)
        self.stub = glow_service_pb2_grpc.GlowServiceStub(self.channel)

    def close_soon(self) -> None:
        """Closes it; for its own loop."""
        self._closing = asyncio.ensure_future(self.channel.close())  # a loop holds its tasks weakly
