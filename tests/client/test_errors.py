"""Errors of gRPC as RequestError."""

from __future__ import annotations

import pickle

import grpc
import pytest
from google.protobuf import duration_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

import glowserve
from glowserve.client.errors import RequestError, request_errors


class Refused(grpc.RpcError):
    """An error of a call, which is the call itself, as gRPC raises it."""

    def __init__(
        self, code: grpc.StatusCode, details: str | None, metadata: tuple[tuple[str, str | bytes], ...] = ()
    ) -> None:
        self._code = code
        self._details = details
        self._metadata = metadata

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str | None:
        return self._details

    def trailing_metadata(self) -> tuple[tuple[str, str | bytes], ...]:
        return self._metadata


def test_an_error_of_grpc_becomes_a_request_error_with_code_and_message() -> None:
    with pytest.raises(glowserve.RequestError) as caught, request_errors():
        raise Refused(grpc.StatusCode.NOT_FOUND, "no such model")
    assert caught.value.code is grpc.StatusCode.NOT_FOUND
    assert caught.value.message == "no such model"
    assert str(caught.value) == "NOT_FOUND: no such model"
    assert caught.value.__suppress_context__


@pytest.mark.parametrize("details", [None, ""])
def test_an_error_without_details_has_a_message(details: str | None) -> None:
    with pytest.raises(RequestError, match=r"^UNKNOWN: no details$"), request_errors():
        raise Refused(grpc.StatusCode.UNKNOWN, details)


def test_other_errors_are_not_converted() -> None:
    with pytest.raises(ZeroDivisionError), request_errors():
        raise ZeroDivisionError


def test_an_error_can_be_pickled() -> None:
    error = RequestError(grpc.StatusCode.UNAVAILABLE, "gone", "SERVER_UNAVAILABLE", 1.5, "a1", {"images": 3})
    copy = pickle.loads(pickle.dumps(error))
    assert vars(copy) == vars(error)
    assert str(copy) == str(error) == "UNAVAILABLE: gone"


def status(*details: Message) -> bytes:
    message = status_pb2.Status(code=8, message="full")
    for detail in details:
        message.details.add().Pack(detail)
    return message.SerializeToString()


INFO = error_details_pb2.ErrorInfo(reason="QUEUE_FULL", domain="glowserve", metadata={"model": "digits"})
RETRY = error_details_pb2.RetryInfo(retry_delay=duration_pb2.Duration(seconds=3, nanos=250_000_000))
VIOLATION = error_details_pb2.BadRequest.FieldViolation(field="n", description="n is 0")
FOREIGN = error_details_pb2.ErrorInfo(reason="RATE_LIMIT", domain="googleapis.com")


@pytest.mark.parametrize(
    ("data", "reason", "retry_after"),
    [
        (status(INFO, RETRY), "QUEUE_FULL", 3.25),
        (status(RETRY, error_details_pb2.BadRequest(field_violations=[VIOLATION]), INFO), "QUEUE_FULL", 3.25),
        (status(INFO), "QUEUE_FULL", None),
        (status(FOREIGN, RETRY), "", 3.25),
        (status(INFO, FOREIGN), "QUEUE_FULL", None),
        (status(error_details_pb2.RetryInfo()), "", None),
        (status(), "", None),
        (status(INFO, RETRY)[:-3], "", None),
        (b"\xff\xff", "", None),
        (b"\x18\x05", "", None),  # field 3 is a varint
        (b"\x1a\x02\x08\x05", "", None),  # field 1 of a detail is a varint
    ],
)
def test_the_details_of_a_status_become_reason_and_pause(
    data: bytes, reason: str, retry_after: float | None
) -> None:
    with pytest.raises(RequestError, match=r"^RESOURCE_EXHAUSTED: full$") as caught, request_errors():
        raise Refused(
            grpc.StatusCode.RESOURCE_EXHAUSTED, "full", (("a", b"b"), ("grpc-status-details-bin", data))
        )
    assert (caught.value.reason, caught.value.retry_after) == (reason, retry_after)


@pytest.mark.parametrize(
    ("facts", "limits"),
    [
        ({"max_images_per_call": "16"}, {"max_images_per_call": 16}),
        ({"a": "1", "b": "2"}, {"a": 1, "b": 2}),
        ({"model": "digits", "a": "-1", "b": "", "c": "3"}, {"c": 3}),
        ({}, {}),
    ],
)
def test_the_facts_of_a_status_that_are_numbers_are_limits(
    facts: dict[str, str], limits: dict[str, int]
) -> None:
    info = error_details_pb2.ErrorInfo(reason="INVALID_REQUEST", domain="glowserve", metadata=facts)
    with pytest.raises(RequestError) as caught, request_errors():
        raise Refused(grpc.StatusCode.INVALID_ARGUMENT, "no", (("grpc-status-details-bin", status(info)),))
    assert (caught.value.reason, caught.value.limits) == ("INVALID_REQUEST", limits)


def test_the_request_id_is_read_from_the_metadata() -> None:
    with pytest.raises(RequestError) as caught, request_errors():
        raise Refused(grpc.StatusCode.NOT_FOUND, "no such model", (("x-request-id", "a1"),))
    assert caught.value.request_id == "a1"
