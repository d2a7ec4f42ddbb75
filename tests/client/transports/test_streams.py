"""Scores over one stream: how far ahead images are read, and what happens when a stream ends early."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from glowserve_service.server import Server

import glowserve
from glowserve.client.transports import streams
from glowserve.images import UInt8Array
from glowserve.v1 import glow_service_pb2 as pb
from glowserve.v1 import glow_service_pb2_grpc
from tests.client.blocking import Connect
from tests.client.serving import serve, wait_until_idle
from tests.servers import RunServer, free_port
from tests.service.metrics import ended
from tests.service.stubs import address

BLANK = np.zeros((8, 8), np.uint8)


def test_many_images_are_scored_in_order_over_one_stream(
    connect: Connect, run_server: RunServer, digits: UInt8Array, embedded: glowserve.Client
) -> None:
    expected = embedded.score(digits, seed=3).log_likelihood
    with run_server() as server, connect(address(server)) as client:
        parts = list(client.iter_scores((digits[i % 179] for i in range(1000)), seed=3))
        wait_until_idle(server)
        assert ended(server, "ScoreStream", "OK") == 1
    assert [len(part) for part in parts] == [64] * 15 + [40]
    found = np.concatenate([part.log_likelihood for part in parts])
    np.testing.assert_allclose(found, expected[np.arange(1000) % 179], rtol=1e-6)


def test_images_are_read_at_most_320_ahead_of_the_scores(answering: glowserve.Client) -> None:
    read = itertools.count()
    scores = answering.iter_scores(BLANK for _ in read)
    for taken in range(1, 6):
        assert len(next(scores)) == 64
        assert 0 <= next(read) - taken * 64 <= 320
    scores.close()


def test_closing_an_iterator_of_scores_cancels_the_call(connect: Connect, run_server: RunServer) -> None:
    with run_server() as server, connect(address(server)) as client:
        scores = client.iter_scores(itertools.repeat(BLANK))
        next(scores)
        scores.close()
        wait_until_idle(server)
        assert ended(server, "ScoreStream", "CANCELLED") == 1


def test_no_images_are_no_scores(answering: glowserve.Client) -> None:
    assert list(answering.iter_scores([])) == []


def test_no_images_are_no_call(connect: Connect, run_server: RunServer) -> None:
    with run_server() as server, connect(address(server)) as client:
        assert list(client.iter_scores([])) == []
        assert not server.metrics.registry.get_sample_value(
            "glowserve_requests_total", {"method": "ScoreStream", "model": "", "code": "OK"}
        )


def test_an_image_of_a_wrong_type_cancels_the_call(connect: Connect, server: Server) -> None:
    with connect(address(server)) as client:
        images: Iterator[Any] = itertools.chain(itertools.repeat(BLANK, 500), [None])
        with pytest.raises(TypeError, match=r"images\[500\]: NoneType is no image"):
            list(client.iter_scores(images))
        wait_until_idle(server)


# Timeouts


def test_a_response_that_is_late_ends_the_stream(connect: Connect, run_server: RunServer) -> None:
    with (
        run_server(max_queue_delay_ms=600_000.0, drain_seconds=0.0) as server,
        connect(address(server), timeout=0.3) as client,
    ):
        with pytest.raises(glowserve.RequestError, match=r"no answer within 0\.3 s") as caught:
            next(client.iter_scores(BLANK))
        assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
        wait_until_idle(server)


class Echo:
    """A call that answers each request with the request."""

    def __init__(self, requests: Any) -> None:
        self._requests = requests

    def __next__(self) -> Any:
        return next(self._requests)

    def __aiter__(self) -> Any:
        return aiter(self._requests)

    def cancel(self) -> None:
        """See grpc.Call."""


def slow(n: int) -> Iterator[int]:
    """Numbers, of which one takes longer than a timeout of one second."""
    for i in range(n):
        if i == 5:
            time.sleep(1.2)
        yield i


def test_the_timeout_does_not_include_the_reading_of_images() -> None:
    assert list(streams.responses(Echo, slow(9), timeout=1)) == list(range(9))


async def test_the_timeout_does_not_include_the_reading_of_images_in_an_event_loop() -> None:
    async def requests() -> AsyncIterator[int]:
        for i in slow(9):
            yield i

    assert [i async for i in streams.responses_async(Echo, requests(), timeout=1)] == list(range(9))


# Streams that end early


def test_a_restarted_service_loses_no_scores(
    connect: Connect, run_server: RunServer, digits: UInt8Array, embedded: glowserve.Client
) -> None:
    port = free_port()
    expected = embedded.score(digits).log_likelihood[np.arange(1000) % 179]
    with ExitStack() as first, connect(f"127.0.0.1:{port}") as client:
        first.enter_context(run_server(port=port))
        scores = client.iter_scores(digits[i % 179] for i in range(1000))
        parts = [next(scores), next(scores)]
        first.close()
        with run_server(port=port) as server:
            parts.extend(scores)
            wait_until_idle(server)
            assert ended(server, "ScoreStream", "OK") == 1
    np.testing.assert_allclose(np.concatenate([part.log_likelihood for part in parts]), expected, rtol=1e-6)


def test_a_service_that_is_away_for_seconds_loses_no_scores(
    connect: Connect, run_server: RunServer, digits: UInt8Array, embedded: glowserve.Client
) -> None:
    port = free_port()
    expected = embedded.score(digits).log_likelihood[np.arange(1000) % 179]
    with ExitStack() as first, ExitStack() as second, connect(f"127.0.0.1:{port}") as client:
        first.enter_context(run_server(port=port))
        scores = client.iter_scores(digits[i % 179] for i in range(1000))
        parts = [next(scores)]
        first.close()
        coming = threading.Timer(3, lambda: second.enter_context(run_server(port=port)))
        coming.start()
        parts.extend(scores)
        coming.join()
    np.testing.assert_allclose(np.concatenate([part.log_likelihood for part in parts]), expected, rtol=1e-6)


class EndingEarly(glow_service_pb2_grpc.GlowServiceServicer):
    """Answers some requests of each stream with the first value of each image, and then ends the stream.

    Args:
        answers: how many requests of each stream are answered.
        code: the status of the end.
    """

    def __init__(self, answers: list[int], code: grpc.StatusCode) -> None:
        self.answers = answers
        self.code = code

    def ScoreStream(
        self, requests: Iterator[pb.ScoreRequest], context: grpc.ServicerContext
    ) -> Iterator[pb.ScoreResponse]:
        if (first := next(requests, None)) is None:
            return
        for request in itertools.islice(itertools.chain([first], requests), self.answers.pop(0)):
            numbers = request.images.tensor.data[::64]
            yield pb.ScoreResponse(scores=[pb.ImageScore(log_likelihood=number) for number in numbers])
        if self.code is not grpc.StatusCode.OK:
            context.abort(self.code, "not now")


def numbered(n: int) -> Iterator[UInt8Array]:
    """Images that are all 0, all 1, and so on."""
    return (np.full((8, 8), i % 256, np.uint8) for i in range(n))


@pytest.mark.parametrize("answers", [[3, 1, 6], [10], [9, 1], [1, 0, 0, 9]])
def test_unanswered_requests_are_sent_over_another_stream(connect: Connect, answers: list[int]) -> None:
    """Ten requests. gRPC itself retries a stream without a response; the status of the last stream does not matter."""
    servicer = EndingEarly([*answers, 10, 10], grpc.StatusCode.UNAVAILABLE)
    with serve(servicer) as target, connect(target) as client:
        found = [row for part in client.iter_scores(numbered(640)) for row in part.log_likelihood]
    assert found == [i % 256 for i in range(640)]
    assert len(servicer.answers) >= 1


def test_a_stream_without_an_error_must_answer_every_request() -> None:
    """For Client alone: grpc.aio can lose the status of such a stream, and AsyncClient then sends the rest again."""
    found: list[glowserve.Scores] = []
    servicer = EndingEarly([3, 10], grpc.StatusCode.OK)
    with (
        serve(servicer) as target,
        glowserve.Client(target) as client,
        pytest.raises(glowserve.RequestError, match="ended the stream before it had answered"),
    ):
        found.extend(client.iter_scores(numbered(640)))
    assert (len(found), servicer.answers) == (3, [10])


def test_a_refused_request_keeps_its_status_while_others_are_written(
    connect: Connect, server: Server, digits: UInt8Array
) -> None:
    """The tenth request of many: grpc.aio loses the status of such a stream about every other time."""
    images = [*itertools.repeat(digits[0], 577), np.zeros((9, 9, 1), np.uint8), *digits, *digits]
    for _ in range(8):
        with connect(address(server)) as client:
            parts = list(client.iter_scores(iter(images)))
        (error,) = [error for part in parts for error in part.errors]
        assert error.index == 577
        assert error.message.startswith("INVALID_ARGUMENT: images.tensor.shape is [1, 9, 9, 1]")
        assert sum(map(len, parts)) == len(images) - 1
    wait_until_idle(server)


def test_a_refused_call_keeps_its_status_however_large_the_first_request(
    connect: Connect, run_server: RunServer, tmp_path: Path
) -> None:
    (tmp_path / "tokens").write_text("operator " + "b" * 32 + " admin\n")
    with run_server(tokens=tmp_path / "tokens") as server:
        for _ in range(3):
            with connect(address(server)) as client, pytest.raises(glowserve.RequestError) as caught:
                next(client.iter_scores(itertools.repeat(bytes(2**22))))
            assert caught.value.code is grpc.StatusCode.UNAUTHENTICATED


async def test_a_refused_stream_leaves_no_task_behind(server: Server) -> None:
    before = asyncio.all_tasks()
    async with glowserve.AsyncClient(address(server)) as client:
        for _ in range(8):
            with pytest.raises(glowserve.RequestError, match="NOT_FOUND"):
                _ = [part async for part in client.iter_scores(itertools.repeat(BLANK, 9), model="missing")]
        await asyncio.sleep(0.05)  # for gRPC's own tasks to end
        assert asyncio.all_tasks() == before


class LosingStatus(grpc.aio.AioRpcError):
    """The error that grpc.aio raises when it has lost a status."""

    def __init__(self) -> None:
        metadata = grpc.aio.Metadata()
        super().__init__(grpc.StatusCode.INTERNAL, metadata, metadata)


async def test_a_stream_that_loses_its_status_five_times_in_a_row_is_an_error() -> None:
    opened: list[list[int]] = []

    class Lost:
        def __init__(self, requests: AsyncIterator[int]) -> None:
            self._requests = requests

        async def __aiter__(self) -> AsyncIterator[int]:
            opened.append([await anext(self._requests, -1)])
            if opened[-1] != [-1]:
                raise LosingStatus
            for _ in ():
                yield 0

        def cancel(self) -> None:
            """See grpc.Call."""

    async def requests() -> AsyncIterator[int]:
        for i in range(9):
            yield i

    with pytest.raises(glowserve.RequestError, match="INTERNAL"):
        _ = [i async for i in streams.responses_async(Lost, requests(), timeout=60)]
    # An empty stream after each of the first four.
    assert opened == [[0], [-1]] * 4 + [[0]]


class Restarting(glow_service_pb2_grpc.GlowServiceServicer):
    """Answers one request of the first stream, and refuses the next ones with UNAVAILABLE.

    Args:
        refused: how many attempts, those of gRPC's own retries among them.
    """

    def __init__(self, refused: int) -> None:
        self.refused = refused
        self.streams = 0

    def ScoreStream(
        self, requests: Iterator[pb.ScoreRequest], context: grpc.ServicerContext
    ) -> Iterator[pb.ScoreResponse]:
        self.streams += 1
        for number, request in enumerate(requests):
            if self.streams > 1 and self.refused:
                self.refused -= 1
                context.abort(grpc.StatusCode.UNAVAILABLE, "restarting")
            if self.streams == 1 and number == 1:
                context.abort(grpc.StatusCode.UNAVAILABLE, "restarting")
            values = request.images.tensor.data[::64]
            yield pb.ScoreResponse(scores=[pb.ImageScore(log_likelihood=value) for value in values])


def test_a_stream_waits_for_a_service_that_has_answered_to_come_back(connect: Connect) -> None:
    servicer = Restarting(refused=12)  # twice as long as gRPC itself retries
    with serve(servicer) as target, connect(target) as client:
        found = [row for part in client.iter_scores(numbered(640)) for row in part.log_likelihood]
    assert found == [i % 256 for i in range(640)]
    assert servicer.refused == 0


def test_a_stream_does_not_wait_for_a_service_longer_than_its_timeout(connect: Connect) -> None:
    servicer = Restarting(refused=10**6)
    began = time.monotonic()
    with serve(servicer) as target, connect(target, timeout=2) as client:
        with pytest.raises(glowserve.RequestError) as caught:
            list(client.iter_scores(numbered(640)))
        assert caught.value.code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
    assert time.monotonic() - began < 30
