"""The transport of `Client`: gRPC calls to a running service."""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from typing import Any

import grpc

from glowserve.client.errors import RequestError, request_errors
from glowserve.client.transports import streams
from glowserve.client.transports.attempts import Attempts
from glowserve.client.transports.base import RepeatableRequests
from glowserve.client.transports.channel import ChannelFactory, ChannelSettings, sample_timeout
from glowserve.client.transports.forks import PROCESS
from glowserve.client.transports.uploads import upload
from glowserve.v1 import glow_service_pb2 as pb
from glowserve.v1 import glow_service_pb2_grpc


class GrpcTransport:
    """Sends requests to a service; implements `Transport`.

    It can be pickled, also within a client: the copy opens a channel of its own. So does a child process of `os.fork`.

    Args:
        settings: the target, the timeout, and the protection.

    Raises:
        TypeError, ValueError: see `ChannelFactory`.
    """

    def __init__(self, settings: ChannelSettings) -> None:
        self._settings = settings
        self._channels = ChannelFactory(settings)
        self._inherited: list[grpc.Channel] = []
        self._interrupted = False
        self._open()

    def __reduce__(self) -> tuple[type[GrpcTransport], tuple[ChannelSettings]]:
        return type(self), (self._settings,)

    def score(self, request: pb.ScoreRequest) -> pb.ScoreResponse:
        """See Transport."""
        response: pb.ScoreResponse = self._call("Score", request)
        return response

    def score_stream(self, requests: Iterator[pb.ScoreRequest]) -> Generator[pb.ScoreResponse, None, None]:
        """See Transport. The timeout applies to each response."""

        def open_stream(requests: Iterator[pb.ScoreRequest]) -> Any:
            return self._stub.ScoreStream(requests, metadata=self._channels.metadata)

        responses = streams.responses(open_stream, requests, self._settings.timeout)
        with self._calling(), streams.stream_errors(), closing(responses):
            yield from responses

    def sample(self, request: pb.SampleRequest) -> Generator[pb.SampleResponse, None, None]:
        """See Transport. The timeout applies to the whole stream, and grows with the number of samples."""
        attempts = Attempts(sample_timeout(self._settings.timeout, request.n))
        begun = False
        while True:
            try:
                with self._calling(), request_errors():
                    call = self._stub.Sample(
                        request, timeout=attempts.seconds_left, metadata=self._channels.metadata
                    )
                    try:
                        for response in call:
                            begun = True
                            yield response
                        return
                    finally:
                        call.cancel()
            except RequestError as error:
                if begun:
                    raise
                time.sleep(attempts.pause(error))

    def explain(self, request: pb.ExplainRequest) -> pb.ExplainResponse:
        """See Transport."""
        response: pb.ExplainResponse = self._call("Explain", request)
        return response

    def score_set(self, requests: RepeatableRequests) -> pb.ScoreSetResponse:
        """See Transport. The timeout applies to each wait for the service."""
        attempts: Attempts | None = None
        while True:
            try:
                with self._calling(), request_errors():
                    options = {"metadata": self._channels.metadata}
                    response: pb.ScoreSetResponse = upload(
                        self._stub.ScoreSet, requests, self._settings.timeout, options
                    )
                    return response
            except RequestError as error:
                if not requests.repeatable:
                    raise
                attempts = attempts or Attempts(self._settings.timeout)
                time.sleep(attempts.pause(error))

    def encode(self, request: pb.EncodeRequest) -> pb.EncodeResponse:
        """See Transport."""
        response: pb.EncodeResponse = self._call("Encode", request)
        return response

    def decode(self, request: pb.DecodeRequest) -> pb.DecodeResponse:
        """See Transport."""
        response: pb.DecodeResponse = self._call("Decode", request)
        return response

    def interpolate(self, request: pb.InterpolateRequest) -> pb.InterpolateResponse:
        """See Transport."""
        response: pb.InterpolateResponse = self._call("Interpolate", request)
        return response

    def manipulate(self, request: pb.ManipulateRequest) -> pb.ManipulateResponse:
        """See Transport."""
        response: pb.ManipulateResponse = self._call("Manipulate", request)
        return response

    def list_models(self, request: pb.ListModelsRequest) -> pb.ListModelsResponse:
        """See Transport."""
        response: pb.ListModelsResponse = self._call("ListModels", request)
        return response

    def get_model(self, request: pb.GetModelRequest) -> pb.GetModelResponse:
        """See Transport."""
        response: pb.GetModelResponse = self._call("GetModel", request)
        return response

    def close(self) -> None:
        """Closes the connection. After an interrupted call it stays open until the process ends."""
        if not self._interrupted:
            with self._interruptible():
                self._channel.close()

    def _open(self) -> None:
        self._process = os.getpid()
        self._channel = self._channels.open(grpc)
        self._stub = glow_service_pb2_grpc.GlowServiceStub(self._channel)

    def _call(self, method: str, request: Any) -> Any:
        attempts = Attempts(self._settings.timeout)
        while True:
            try:
                with self._calling(), request_errors():
                    return getattr(self._stub, method)(
                        request, timeout=attempts.seconds_left, metadata=self._channels.metadata
                    )
            except RequestError as error:
                time.sleep(attempts.pause(error))

    @contextmanager
    def _calling(self) -> Iterator[None]:
        """The context of each call. In a child process it first opens another channel."""
        with PROCESS.call(), self._interruptible():
            if self._process != os.getpid():
                # Kept, since closing it could close the parent's connection.
                self._inherited.append(self._channel)
                self._open()
            yield

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
