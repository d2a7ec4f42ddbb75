"""The error of a call that was refused or failed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

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
        limits: see the attribute.
        field: see the attribute.
    """

    def __init__(
        self,
        code: grpc.StatusCode,
        message: str,
        reason: str = "",
        retry_after: float | None = None,
        request_id: str = "",
        limits: Mapping[str, int] | None = None,
        field: str = "",
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

        self.limits = dict(limits or {})
        """The limits of the service that the call exceeds, such as max_images_per_call; a smaller call is accepted."""

        self.field = field
        """The path of the invalid field of the request, such as "model.name"; "" if no single field is invalid."""

    def __reduce__(self) -> tuple[type[RequestError], tuple[Any, ...]]:
        """Pickles the error, so that worker processes can raise it."""
        others = self.reason, self.retry_after, self.request_id, self.limits, self.field
        return type(self), (self.code, self.message, *others)

    def with_message(self, message: str) -> RequestError:
        """The same error with another message."""
        kept = self.reason, self.retry_after, self.request_id, self.limits, self.field
        return RequestError(self.code, message, *kept)

    @classmethod
    def of(cls, error: grpc.RpcError) -> RequestError:
        """Converts an error that gRPC raised."""
        call: grpc.Call = error  # type: ignore[assignment]  # the error of a call is the call itself
        details, request_id = _Details(), ""
        # dict() does not accept the metadata of grpc.aio.
        for key, value in call.trailing_metadata() or ():
            if key == _DETAILS and isinstance(value, bytes):
                details = _details(value)
            elif key == _REQUEST_ID and isinstance(value, str):
                request_id = value
        return cls(
            call.code(),
            _message(call, details.reason),
            details.reason,
            details.retry_after,
            request_id,
            details.limits,
            details.field,
        )


@contextmanager
def request_errors() -> Iterator[None]:
    """Converts errors that gRPC raises in the block to RequestError."""
    try:
        yield
    except grpc.RpcError as error:
        raise RequestError.of(error) from None


def _message(call: grpc.Call, reason: str) -> str:
    message = call.details() or "no details"
    if call.code() is grpc.StatusCode.UNIMPLEMENTED and not reason:  # gRPC's own, which knows no such method
        return f"{message}: the service may be older than this client"
    return message


class _Details(NamedTuple):
    """The details of a status; see the attributes of RequestError."""

    reason: str = ""
    retry_after: float | None = None
    limits: Mapping[str, int] = {}
    field: str = ""


def _details(status: bytes) -> _Details:
    """The details of a serialized google.rpc.Status.

    Parsed without googleapis-common-protos, which would be one more dependency for six fields.
    """
    found = _Details()
    try:
        for detail in _fields(status).get(3, ()):
            (kind,), (content,) = _fields(detail)[1], _fields(detail)[2]
            fields = _fields(content)
            if kind.endswith(b"/google.rpc.ErrorInfo") and fields[2] == [b"glowserve"]:
                facts = [(entry[1][0], entry[2][0]) for entry in map(_fields, fields.get(3, ()))]
                limits = {name.decode(): int(most) for name, most in facts if most.isdigit()}
                found = found._replace(reason=fields[1][0].decode(), limits=limits)
            elif kind.endswith(b"/google.rpc.RetryInfo"):
                seconds = Duration.FromString(fields[1][0]).ToNanoseconds() / 1e9
                found = found._replace(retry_after=seconds)
            elif kind.endswith(b"/google.rpc.BadRequest"):
                found = found._replace(field=_fields(fields[1][0])[1][0].decode())
    except (DecodeError, KeyError, ValueError):
        pass  # a proxy answered, not the service: its status has no such details
    return found


def _fields(message: bytes) -> dict[int, list[bytes]]:
    """The strings, bytes and messages in a serialized message of any type, by field number."""
    values: dict[int, list[bytes]] = {}
    for field in UnknownFieldSet(Empty.FromString(message)):
        if isinstance(field.data, bytes):
            values.setdefault(field.field_number, []).append(field.data)
    return values
