"""What a call can end with other than an answer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import grpc


class RequestError(Exception):
    """A call that was refused, or could not be made.

    `glowserve.v1.GlowService` in protos/ says what each code means and whether to try again.
    """

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(f"{code.name}: {message}")
        self.code = code
        """Its status."""
        self.message = message
        """What was wrong with which value, and what to do."""

    def __reduce__(self) -> tuple[type[RequestError], tuple[grpc.StatusCode, str]]:
        """So that it survives the way back from another process."""
        return type(self), (self.code, self.message)

    @classmethod
    def of(cls, error: grpc.RpcError) -> RequestError:
        """What gRPC raised, as one of these."""
        call: grpc.Call = error  # type: ignore[assignment]  # every error of a call is that call, too
        return cls(call.code(), call.details() or "no details")


@contextmanager
def request_errors() -> Iterator[None]:
    """Turns what gRPC raises into `RequestError`."""
    try:
        yield
    except grpc.RpcError as error:
        raise RequestError.of(error) from None
