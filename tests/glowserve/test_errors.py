"""What gRPC raises, as the client's own error."""

from __future__ import annotations

import pickle

import grpc
import pytest

import glowserve
from glowserve.errors import RequestError, request_errors


class Refused(grpc.RpcError):
    """What gRPC raises is an error and a call in one."""

    def __init__(self, code: grpc.StatusCode, details: str | None) -> None:
        self._code = code
        self._details = details

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str | None:
        return self._details


def test_an_error_of_grpc_becomes_code_and_message() -> None:
    with pytest.raises(glowserve.RequestError) as caught, request_errors():
        raise Refused(grpc.StatusCode.NOT_FOUND, "no such model")
    assert caught.value.code is grpc.StatusCode.NOT_FOUND
    assert caught.value.message == "no such model"
    assert str(caught.value) == "NOT_FOUND: no such model"
    assert caught.value.__suppress_context__


@pytest.mark.parametrize("details", [None, ""])
def test_an_error_without_details_says_so(details: str | None) -> None:
    with pytest.raises(RequestError, match=r"^UNKNOWN: no details$"), request_errors():
        raise Refused(grpc.StatusCode.UNKNOWN, details)


def test_other_errors_pass() -> None:
    with pytest.raises(ZeroDivisionError), request_errors():
        raise ZeroDivisionError


def test_an_error_survives_pickling() -> None:
    error = RequestError(grpc.StatusCode.UNAVAILABLE, "gone")
    copy = pickle.loads(pickle.dumps(error))
    assert (copy.code, copy.message, str(copy)) == (error.code, error.message, str(error))
