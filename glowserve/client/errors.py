"""What a call can end with other than an answer."""

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
    """A call that was refused, or could not be made.

    docs/errors.md says what each code and reason means, and what to do.
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
        """Its status."""
        self.message = message
        """What was wrong with which value, and what to do."""
        self.reason = reason
        """Which error of the service it is, such as QUEUE_FULL; "" if it is none of the service's own."""
        self.retry_after = retry_after
        """Seconds after which the call may be tried again; None if the service did not say."""
        self.request_id = request_id
        """Under which the service's log has the call; "" if it never arrived."""

    def __reduce__(self) -> tuple[type[RequestError], tuple[grpc.StatusCode, str, str, float | None, str]]:
        """So that it survives the way back from another process."""
        return type(self), (self.code, self.message, self.reason, self.retry_after, self.request_id)

    @classmethod
    def of(cls, error: grpc.RpcError) -> RequestError:
        """What gRPC raised, as one of these."""
        call: grpc.Call = error  # type: ignore[assignment]  # every error of a call is that call, too
        reason, retry_after, request_id = "", None, ""
        # Not a dict: the metadata of grpc.aio cannot be made one.
        for key, value in call.trailing_metadata() or ():
            if key == _DETAILS and isinstance(value, bytes):
                reason, retry_after = _reason_and_retry(value)
            elif key == _REQUEST_ID and isinstance(value, str):
                request_id = value
        return cls(call.code(), call.details() or "no details", reason, retry_after, request_id)


@contextmanager
def request_errors() -> Iterator[None]:
    """Turns what gRPC raises into `RequestError`."""
    try:
        yield
    except grpc.RpcError as error:
        raise RequestError.of(error) from None


def _reason_and_retry(status: bytes) -> tuple[str, float | None]:
    """What a google.rpc.Status says; "" and None if it says neither, or cannot be read.

    Its classes are not imported: they would be one more dependency, for four fields.
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
        pass  # it is not the service's: something in between has answered
    return reason, retry_after


def _fields(message: bytes) -> dict[int, list[bytes]]:
    """The strings, bytes and messages in a message of any kind, by the numbers of their fields."""
    values: dict[int, list[bytes]] = {}
    for field in UnknownFieldSet(Empty.FromString(message)):
        if isinstance(field.data, bytes):
            values.setdefault(field.field_number, []).append(field.data)
    return values
