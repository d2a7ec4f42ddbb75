"""The error of a call that was refused or failed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import DecodeError
from google.protobuf.unknown_fields import UnknownFieldSet

_DETAILS, _REQUEST_ID = "grpc-status-details-bin", "x-request-id"


class RequestError(Exception):
    """A call was refused or failed. docs/errors.md explains each code and reason, and what to do.

    Args:
        code: the status code.
        message: what was wrong with which value, and what to do.
        reason: see the attribute.
        retry_after: see the attribute.
        request_id: see the attribute.
    """

    def __init__(
        self,
        code: grpc.StatusCode,
        message: str,
        reason: str = "",
        retry_after: float | None = None,
        request_id: str = "",
    ) -> None:
        super().__init__(f"{code.name}: {message}")
        self.code = code
        """The status code."""
        self.message = message
        """What was wrong with which value, and what to do."""
        self.reason = reason
        """The service's name for the error, such as QUEUE_FULL, which never changes; "" if gRPC made the error."""
        self.retry_after = retry_after
        """How many seconds to wait before a retry; None if the service gave no time."""
        self.request_id = request_id
        """The call's ID in the service's log; "" if the call did not arrive there, or there is no service."""

    def __reduce__(self) -> tuple[type[RequestError], tuple[grpc.StatusCode, str, str, float | None, str]]:
        """Pickles the error, so that worker processes can raise it."""
        return type(self), (self.code, self.message, self.reason, self.retry_after, self.request_id)

    @classmethod
    def of(cls, error: grpc.RpcError) -> RequestError:
        """Converts an error that gRPC raised."""
        call: grpc.Call = error  # type: ignore[assignment]  # the error of a call is the call itself
        reason, retry_after, request_id = "", None, ""
        # dict() does not accept the metadata of grpc.aio.
        for key, value in call.trailing_metadata() or ():
            if key == _DETAILS and isinstance(value, bytes):
                reason, retry_after = _reason_and_retry(value)
            elif key == _REQUEST_ID and isinstance(value, str):
                request_id = value
        return cls(call.code(), call.details() or "no details", reason, retry_after, request_id)


@contextmanager
def request_errors() -> Iterator[None]:
    """Converts errors that gRPC raises in the block to RequestError."""
    try:
        yield
    except grpc.RpcError as error:
        raise RequestError.of(error) from None


def _reason_and_retry(status: bytes) -> tuple[str, float | None]:
    """The reason and the pause, in seconds, of a serialized google.rpc.Status; "" and None if it has none.

    Parsed without googleapis-common-protos, which would be one more dependency for four fields.
    """
    reason, retry_after = "", None
    try:
        for detail in _fields(status).get(3, ()):
            (kind,), (content,) = _fields(detail)[1], _fields(detail)[2]
            fields = _fields(content)
            if kind.endswith(b"/google.rpc.ErrorInfo") and fields[2] == [b"glowserve"]:
                reason = fields[1][0].decode()
            elif kind.endswith(b"/google.rpc.RetryInfo"):
                retry_after = Duration.FromString(fields[1][0]).ToNanoseconds() / 1e9
    except (DecodeError, KeyError, ValueError):
        pass  # a proxy answered, not the service: its status has no such details
    return reason, retry_after


def _fields(message: bytes) -> dict[int, list[bytes]]:
    """The strings, bytes and messages in a serialized message of any type, by field number."""
    values: dict[int, list[bytes]] = {}
    for field in UnknownFieldSet(Empty.FromString(message)):
        if isinstance(field.data, bytes):
            values.setdefault(field.field_number, []).append(field.data)
    return values
