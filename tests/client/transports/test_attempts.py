"""Refused calls that are sent again: when, how often, and until when."""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

import glowserve
from glowserve.cli import main
from glowserve.client.errors import RequestError
from glowserve.client.transports.attempts import Attempts
from glowserve.images import UInt8Array, encode_png
from glowserve.v1 import glow_service_pb2 as pb
from glowserve.v1 import glow_service_pb2_grpc
from tests.client.blocking import Connect
from tests.client.serving import refusal, serve
from tests.servers import RunServer
from tests.service.stubs import address

BLANK = np.zeros((8, 8), np.uint8)


class Busy(glow_service_pb2_grpc.GlowServiceServicer):
    """Refuses the first calls, and answers later ones.

    Args:
        times: how many calls are refused.
        code: the status code of the refusals.
        seconds: their RetryInfo; None for none.
    """

    def __init__(self, times: int, code: str = "RESOURCE_EXHAUSTED", seconds: float | None = 0.2) -> None:
        self.left = times
        self.status = refusal(code, seconds)
        self.arrivals: list[float] = []
        self.deadlines: list[float] = []

    def _arrive(self, context: grpc.ServicerContext) -> None:
        self.arrivals.append(time.monotonic())
        self.deadlines.append(context.time_remaining())
        if self.left:
            self.left -= 1
            context.abort_with_status(self.status)

    def Score(self, request: Any, context: grpc.ServicerContext) -> pb.ScoreResponse:
        self._arrive(context)
        return pb.ScoreResponse(scores=[pb.ImageScore()] * request.images.tensor.shape[0])

    def ScoreStream(self, requests: Any, context: grpc.ServicerContext) -> Iterator[pb.ScoreResponse]:
        for number, request in enumerate(requests):
            if number == 0:
                self._arrive(context)
            n = len(request.images.encoded.data) or request.images.tensor.shape[0]
            yield pb.ScoreResponse(scores=[pb.ImageScore()] * n)

    def Sample(self, request: Any, context: grpc.ServicerContext) -> Iterator[pb.SampleResponse]:
        self._arrive(context)
        tensor = {"dtype": 1, "shape": [1, 1, 1, 1], "data": b"\7"}
        yield pb.SampleResponse(images=pb.Images(tensor=tensor))

    def ListModels(self, request: Any, context: grpc.ServicerContext) -> pb.ListModelsResponse:
        self._arrive(context)
        return pb.ListModelsResponse()


CALLS: dict[str, Callable[[Any], Any]] = {
    "score": lambda client: client.score(BLANK),
    "iter_scores": lambda client: list(client.iter_scores([BLANK] * 100)),
    "sample": lambda client: client.sample(1),
    "models": lambda client: client.models(),
}


@pytest.mark.parametrize("call", CALLS)
def test_a_refused_call_comes_back_after_growing_pauses(connect: Connect, call: str) -> None:
    service = Busy(3)
    with serve(service) as target, connect(target) as client:
        CALLS[call](client)
    pauses = np.diff(service.arrivals)
    assert len(pauses) == 3
    if (
        call == "iter_scores"
    ):  # grpc.aio may have lost the status of the first, and found it out without a pause
        assert sum(pauses) >= 0.6
        return
    for pause, least in zip(pauses, (0.2, 0.4, 0.8), strict=True):
        assert least <= pause < 10 * least


@pytest.mark.parametrize("call", CALLS)
def test_all_attempts_share_one_timeout(connect: Connect, call: str) -> None:
    service = Busy(10**6, seconds=0.1)
    began = time.monotonic()
    with (
        serve(service) as target,
        connect(target, timeout=1.5) as client,
        pytest.raises(glowserve.RequestError, match=r"RESOURCE_EXHAUSTED: not now|DEADLINE_EXCEEDED"),
    ):
        CALLS[call](client)
    assert 2 <= len(service.arrivals) <= 5 + (call == "sample")
    assert time.monotonic() - began < 15
    if call in ("score", "models"):
        assert all(later < earlier for earlier, later in itertools.pairwise(service.deadlines))


@pytest.mark.parametrize("call", CALLS)
def test_a_pause_beyond_the_timeout_is_not_waited_for(connect: Connect, call: str) -> None:
    service = Busy(10**6, seconds=1000)
    began = time.monotonic()
    with serve(service) as target, connect(target) as client, pytest.raises(glowserve.RequestError):
        CALLS[call](client)
    assert len(service.arrivals) == 1 or (call == "iter_scores" and len(service.arrivals) < 6)
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    ("code", "seconds"), [("RESOURCE_EXHAUSTED", None), ("INVALID_ARGUMENT", 0.1), ("INTERNAL", 0.1)]
)
def test_other_refusals_are_final(connect: Connect, call: str, code: str, seconds: float | None) -> None:
    service = Busy(10**6, code, seconds)
    with serve(service) as target, connect(target) as client, pytest.raises(glowserve.RequestError):
        CALLS[call](client)
    # grpc.aio may have lost the status of a stream, which `streams` then finds out.
    assert len(service.arrivals) == 1 or (call == "iter_scores" and len(service.arrivals) < 6)


def test_pauses_differ_between_clients() -> None:
    busy = RequestError(grpc.StatusCode.RESOURCE_EXHAUSTED, "not now", retry_after=1.0)
    pauses = [Attempts(60).pause(busy) for _ in range(50)]
    assert len(set(pauses)) > 40
    assert all(1 <= pause <= 1.5 for pause in pauses)


@pytest.mark.parametrize("asked", [0.0, -5.0, 1e-9, 1.0, 30.0])
def test_pauses_have_bounds_whatever_the_service_asks_for(asked: float) -> None:
    busy = RequestError(grpc.StatusCode.RESOURCE_EXHAUSTED, "not now", retry_after=asked)
    attempts = Attempts(math.inf)
    assert attempts.seconds_left is None
    pauses = [attempts.pause(busy) for _ in range(2000)]
    assert min(pauses) >= max(asked, 0.1)
    assert max(pauses) <= 1.5 * max(asked, 10.0)


def test_clients_of_a_service_with_a_short_queue_are_all_answered(
    run_server: RunServer, digits: UInt8Array, embedded: glowserve.Client
) -> None:
    expected = embedded.score(digits[:64]).log_likelihood
    with (
        run_server(max_queue_size=64, max_images_per_call=64) as server,
        ThreadPoolExecutor(8) as pool,
        glowserve.Client(address(server)) as client,
    ):
        for scores in pool.map(lambda _: client.score(digits[:64]), range(40)):
            np.testing.assert_allclose(scores.log_likelihood, expected, rtol=1e-5)


def test_the_command_line_scores_although_the_service_is_busy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(encode_png(BLANK[:, :, None]))
    service = Busy(2, seconds=0.1)
    with serve(service) as target:
        assert main(["score", str(tmp_path), "--json", "--server", target]) == 0
    printed = capsys.readouterr()
    assert (len(printed.out.splitlines()), printed.err) == (3, "")
    assert len(service.arrivals) == 3


def test_a_client_may_be_closed_while_a_call_pauses() -> None:
    service, found = Busy(10**6, seconds=0.3), []
    with serve(service) as target:
        client = glowserve.Client(target)

        def call() -> None:
            with pytest.raises((ValueError, glowserve.RequestError)) as caught:
                client.models()
            found.append(caught.value)

        thread = threading.Thread(target=call)
        thread.start()
        while not service.arrivals:
            time.sleep(0.01)
        client.close()
        thread.join(60)
    assert len(found) == 1


# Timeouts


@pytest.mark.parametrize("timeout", [0, -1, -math.inf, math.nan, None, "5", True, [1]])
@pytest.mark.parametrize("kind", [glowserve.Client, glowserve.AsyncClient])
def test_a_timeout_is_a_number_above_0(kind: Any, timeout: Any) -> None:
    with pytest.raises(ValueError, match=r"pass a number of seconds above 0, or math\.inf for no limit"):
        kind("localhost:1", timeout=timeout)


@pytest.mark.parametrize("timeout", [math.inf, 1e300, 1e12, np.float32(60), np.int64(60), 60])
def test_a_timeout_may_be_any_number_of_seconds(connect: Connect, timeout: Any) -> None:
    with serve(Busy(0)) as target, connect(target, timeout=timeout) as client:
        for call in CALLS.values():
            call(client)
