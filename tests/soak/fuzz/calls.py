"""Calls of any method with any bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grpc

from tests.soak.fuzz.cases import Case
from tests.soak.fuzz.findings import CONTRACT
from tests.soak.fuzz.methods import INFERENCE, Method

PATIENCE_SECONDS = 60.0
"""A call that takes longer hangs."""

CUT_SHORT = "CUT_SHORT"
"""The status of a stream that the server ended while gRPC's client still sent."""

Answer = tuple[str, str, list[bytes]]
"""The status, its message, and the responses."""


async def send(channel: grpc.aio.Channel, method: Method, path: str, messages: Sequence[bytes]) -> Answer:
    """Calls `path` as `method` is called."""
    responses: list[bytes] = []
    try:
        if not method.streams_responses:
            responses.append(await channel.unary_unary(path)(messages[0], timeout=PATIENCE_SECONDS))
        else:
            kind: Any = channel.stream_stream if method.streams_requests else channel.unary_stream
            requests = iter(messages) if method.streams_requests else messages[0]
            responses += [part async for part in kind(path)(requests, timeout=PATIENCE_SECONDS)]
    except grpc.aio.AioRpcError as error:
        cut_short = error.details() == "Internal error from Core"
        return CUT_SHORT if cut_short else error.code().name, error.details() or "", responses
    return "OK", "", responses


def send_blocking(channel: grpc.Channel, method: Method, message: bytes) -> Answer:
    """Calls a method with one message, without an event loop."""
    kind: Any = channel.unary_unary
    if method.streams_responses:
        kind = channel.stream_stream if method.streams_requests else channel.unary_stream
    request = iter([message]) if method.streams_requests else message
    try:
        answer = kind(method.path)(request, timeout=PATIENCE_SECONDS)
        return "OK", "", list(answer) if method.streams_responses else [answer]
    except grpc.RpcError as error:
        return error.code().name, error.details() or "", []


def allowed_statuses(case: Case) -> set[str]:
    """The statuses with which the service may answer a case."""
    # After its last request the client sends that there are no more: also after the only one.
    cut_short = {CUT_SHORT} if case.method.streams_requests else set()
    if not case.method_exists:
        return {"UNIMPLEMENTED"} | cut_short
    if case.method.is_admin:
        return {"PERMISSION_DENIED", "INVALID_ARGUMENT"}
    unsupported = {"UNIMPLEMENTED"} if case.method.path.startswith(f"/{INFERENCE}/") else set()
    return CONTRACT | unsupported | cut_short
