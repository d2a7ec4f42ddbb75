"""The transport of `Client`: gRPC calls to a running service."""

from __future__ import annotations

import ctypes
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from typing import Any

import grpc

from glowserve.client.errors import request_errors
from glowserve.client.transports import streams
from glowserve.client.transports.channel import ChannelSettings, sample_timeout
from glowserve.v1 import glow_service_pb2 as pb
from glowserve.v1 import glow_service_pb2_grpc


class GrpcTransport:
    """Sends requests to a service; implements `Transport`.

    Args:
        settings: the target, the timeout, and the protection.

    Raises:
        ValueError: see `ChannelSettings.open`.
    """

    def __init__(self, settings: ChannelSettings) -> None:
        self._timeout = settings.timeout
        self._channel, self._metadata = settings.open(grpc)
        self._stub = glow_service_pb2_grpc.GlowServiceStub(self._channel)
        self._interrupted = False

    def score(self, request: pb.ScoreRequest) -> pb.ScoreResponse:
        """See Transport."""
        response: pb.ScoreResponse = self._call(self._stub.Score, request)
        return response

    def score_stream(self, requests: Iterator[pb.ScoreRequest]) -> Generator[pb.ScoreResponse, None, None]:
        """See Transport. The timeout applies to each response."""

        def open_stream(requests: Iterator[pb.ScoreRequest]) -> Any:
            return self._stub.ScoreStream(requests, metadata=self._metadata)

        responses = streams.responses(open_stream, requests, self._timeout)
        with self._interruptible(), streams.stream_errors(), closing(responses):
            yield from responses

    def sample(self, request: pb.SampleRequest) -> Generator[pb.SampleResponse, None, None]:
        """See Transport. The timeout applies to the whole stream, and grows with the number of samples."""
        timeout = sample_timeout(self._timeout, request.n)
        with self._interruptible(), request_errors():
            call = self._stub.Sample(request, timeout=timeout, metadata=self._metadata)
            try:
                yield from call
            finally:
                call.cancel()

    def encode(self, request: pb.EncodeRequest) -> pb.EncodeResponse:
        """See Transport."""
        response: pb.EncodeResponse = self._call(self._stub.Encode, request)
        return response

    def decode(self, request: pb.DecodeRequest) -> pb.DecodeResponse:
        """See Transport."""
        response: pb.DecodeResponse = self._call(self._stub.Decode, request)
        return response

    def interpolate(self, request: pb.InterpolateRequest) -> pb.InterpolateResponse:
        """See Transport."""
        response: pb.InterpolateResponse = self._call(self._stub.Interpolate, request)
        return response

    def list_models(self, request: pb.ListModelsRequest) -> pb.ListModelsResponse:
        """See Transport."""
        response: pb.ListModelsResponse = self._call(self._stub.ListModels, request)
        return response

    def get_model(self, request: pb.GetModelRequest) -> pb.GetModelResponse:
        """See Transport."""
        response: pb.GetModelResponse = self._call(self._stub.GetModel, request)
        return response

    def close(self) -> None:
        """Closes the connection. After an interrupted call it stays open until the process ends."""
        if not self._interrupted:
            with self._interruptible():
                self._channel.close()

    def _call(self, method: Any, request: Any) -> Any:
        with self._interruptible(), request_errors():
            return method(request, timeout=self._timeout, metadata=self._metadata)

    @contextmanager
    def _interruptible(self) -> Iterator[None]:
        """Keeps the channel until the process ends if Ctrl-C interrupts the block.

        When a channel is closed or freed, gRPC waits until all of its calls have ended. It waits for ever if the
        interrupt came after a call began and before gRPC had started the thread that ends the call.
        """
        try:
            yield
        except RuntimeError as error:
            # An interrupt at the start of `threading.Condition.wait` becomes "cannot release un-acquired lock".
            if not isinstance(error.__context__, KeyboardInterrupt):
                raise
            self._keep_channel()
            raise KeyboardInterrupt from error
        except (Exception, GeneratorExit):
            raise
        except BaseException:
            self._keep_channel()
            raise

    def _keep_channel(self) -> None:
        self._interrupted = True
        # Not a reference from a module: the interpreter frees those before it ends.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._channel))
