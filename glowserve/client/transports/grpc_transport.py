"""Requests over gRPC, for threads."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from typing import Any

import grpc

from glowserve.client.errors import request_errors
from glowserve.client.transports import streams
from glowserve.client.transports.channel import ChannelSettings, sample_timeout
from glowserve.v1 import glow_service_pb2 as pb
from glowserve.v1 import glow_service_pb2_grpc


class GrpcTransport:
    """Asks a running service; see `Transport`.

    Args:
        settings: where, and how.

    Raises:
        ValueError: a file cannot be used, or the token would cross a network in the clear.
    """

    def __init__(self, settings: ChannelSettings) -> None:
        self._timeout = settings.timeout
        self._channel, self._metadata = settings.open(grpc)
        self._stub = glow_service_pb2_grpc.GlowServiceStub(self._channel)

    def score(self, request: pb.ScoreRequest) -> pb.ScoreResponse:
        """See Transport."""
        response: pb.ScoreResponse = self._call(self._stub.Score, request)
        return response

    def score_stream(self, requests: Iterator[pb.ScoreRequest]) -> Iterator[pb.ScoreResponse]:
        """See Transport; the timeout is for each response."""

        def open_stream(requests: Iterator[pb.ScoreRequest]) -> Any:
            return self._stub.ScoreStream(requests, metadata=self._metadata)

        with streams.stream_errors():
            yield from streams.answers(open_stream, requests, self._timeout)

    def sample(self, request: pb.SampleRequest) -> Iterator[pb.SampleResponse]:
        """See Transport; the timeout grows with the number of samples."""
        with request_errors():
            yield from self._stub.Sample(
                request, timeout=sample_timeout(self._timeout, request.n), metadata=self._metadata
            )

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
        """Ends the connection."""
        self._channel.close()

    def abandon(self) -> None:
        """Leaves the connection to the end of the process.

        gRPC waits for the end of an interrupted call when its channel is closed, and also when the channel is freed,
        which is at the latest when the interpreter ends: for ever. So this channel is never freed.
        """
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._channel))

    def _call(self, method: Any, request: Any) -> Any:
        with request_errors():
            return method(request, timeout=self._timeout, metadata=self._metadata)
