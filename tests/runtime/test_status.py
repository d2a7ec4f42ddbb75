"""The status codes and reasons of errors."""

from __future__ import annotations

import grpc
import pytest

from glowserve.runtime import errors
from glowserve.runtime.errors import GlowserveError
from glowserve.runtime.status import INTERNAL, STATUSES, Status, status_of


@pytest.mark.parametrize(
    ("error", "code", "reason"),
    [
        (errors.InvalidRequestError("n is 0"), "INVALID_ARGUMENT", "INVALID_REQUEST"),
        (errors.ModelNotFoundError("nobody"), "NOT_FOUND", "MODEL_NOT_FOUND"),
        (errors.NotFiniteError("image 0", 1), "FAILED_PRECONDITION", "NOT_FINITE"),
        (errors.BundleError("damaged"), "FAILED_PRECONDITION", "MODEL_REFUSED"),
        (errors.DeviceError("no GPU"), "INTERNAL", "INTERNAL"),
        (RuntimeError("a bug"), "INTERNAL", "INTERNAL"),
    ],
)
def test_an_error_has_a_code_and_a_reason(error: Exception, code: str, reason: str) -> None:
    assert status_of(error) == Status(code, reason)


def test_every_code_is_one_of_grpc() -> None:
    names = {code.name for code in grpc.StatusCode}
    assert {status.code for status in (*STATUSES.values(), INTERNAL)} <= names


def test_reasons_are_unique() -> None:
    reasons = [status.reason for status in (*STATUSES.values(), INTERNAL)]
    assert len(set(reasons)) == len(reasons)


def test_another_table_may_have_more_errors() -> None:
    class QueueFullError(GlowserveError):
        pass

    table = {**STATUSES, QueueFullError: Status("RESOURCE_EXHAUSTED", "QUEUE_FULL")}
    assert status_of(QueueFullError("full"), table) == Status("RESOURCE_EXHAUSTED", "QUEUE_FULL")
    assert status_of(QueueFullError("full")) == INTERNAL
