"""Scores of images without end: how far ahead they are read, and what becomes of a stream that ends early."""

from __future__ import annotations

import asyncio
import itertools
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from glowserve_service.server import Server

import glowserve
from glowserve.images import InvalidImageError, UInt8Array
from glowserve.v1 import glow_service_pb2 as pb
from glowserve.v1 import glow_service_pb2_grpc

RunServer = Callable[..., Any]
BLANK = np.zeros((8, 8), np.uint8)


@contextmanager
def scores_of(kind: str, target: str, images: Any, **options: Any) -> Iterator[Iterator[glowserve.Scores]]:
    """An iterator over scores: a Client's, or an AsyncClient's that is asked step by step."""
    timeout = options.pop("timeout", 60.0)
    if kind == "Client":
        with glowserve.Client(target, timeout=timeout) as client:
            scores = client.iter_scores(images, **options)
            yield scores
            scores.close()  # type: ignore[attr-defined]  # a generator, as all are
        return
    with asyncio.Runner() as runner:

        async def open_client() -> glowserve.AsyncClient:
            return glowserve.AsyncClient(target, timeout=timeout)

        asynchronous = runner.run(open_client())
        parts: Any = asynchronous.iter_scores(images, **options)

        async def following() -> glowserve.Scores | None:
            part: glowserve.Scores | None = await anext(parts, None)
            return part

        yield iter(lambda: runner.run(following()), None)
        runner.run(parts.aclose())
        runner.run(asynchronous.close())


both = pytest.mark.parametrize("kind", ["Client", "AsyncClient"])


def address(server: Server) -> str:
    return f"127.0.0.1:{server.port}"


def until_idle(server: Server) -> None:
    deadline = time.monotonic() + 60
    while server.metrics.registry.get_sample_value("glowserve_requests_in_flight"):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def streams_ended(server: Server, code: str) -> float:
    labels = {"method": "ScoreStream", "model": "digits", "code": code}
    return server.metrics.registry.get_sample_value("glowserve_requests_total", labels) or 0


@both
def test_many_images_are_scored_in_order_over_one_stream(
    run_server: RunServer, digits: UInt8Array, embedded: Any, kind: str
) -> None:
    expected = embedded.score(digits, seed=3).log_likelihood
    with (
        run_server() as server,
        scores_of(kind, address(server), (digits[i % 179] for i in range(1000)), seed=3) as scores,
    ):
        parts = list(scores)
        until_idle(server)
        assert streams_ended(server, "OK") == 1
    assert [len(part) for part in parts] == [64] * 15 + [40]
    found = np.concatenate([part.log_likelihood for part in parts])
    np.testing.assert_allclose(found, expected[np.arange(1000) % 179], rtol=1e-6)


@both
def test_images_are_read_as_scores_are_taken(server: Server, kind: str) -> None:
    read = itertools.count()
    with scores_of(kind, address(server), (BLANK for _ in read)) as scores:
        for taken in range(1, 6):
            assert len(next(scores)) == 64
            ahead = next(read) - taken * 64
            assert 0 < ahead <= 320
    until_idle(server)


@both
def test_leaving_scores_midway_ends_the_call(run_server: RunServer, kind: str) -> None:
    with run_server() as server:
        with scores_of(kind, address(server), itertools.repeat(BLANK)) as scores:
            next(scores)
        until_idle(server)
        assert streams_ended(server, "CANCELLED") == 1


@both
def test_no_images_are_no_scores_and_no_call(run_server: RunServer, kind: str) -> None:
    with run_server() as server:
        with scores_of(kind, address(server), []) as scores:
            assert list(scores) == []
        assert not server.metrics.registry.get_sample_value(
            "glowserve_requests_total", {"method": "ScoreStream", "model": "", "code": "OK"}
        )


@both
def test_an_image_that_cannot_be_read_ends_the_call(server: Server, digits: UInt8Array, kind: str) -> None:
    def images() -> Iterator[Any]:
        yield from itertools.repeat(digits[0], 500)
        yield np.zeros((8, 8))

    with scores_of(kind, address(server), images()) as scores:
        found = []
        with pytest.raises(InvalidImageError, match="float64 is no image"):
            found.extend(scores)
    until_idle(server)


@both
def test_each_answer_has_its_time_and_not_the_stream(
    run_server: RunServer, digits: UInt8Array, kind: str
) -> None:
    def slow() -> Iterator[UInt8Array]:
        for i in range(300):
            if i % 64 == 0:
                time.sleep(0.6)
            yield digits[0]

    with run_server() as server, scores_of(kind, address(server), slow(), timeout=2) as scores:
        assert sum(map(len, scores)) == 300
    with (
        run_server(max_queue_delay_ms=600_000.0, drain_seconds=0.0) as server,
        scores_of(kind, address(server), digits[:5], timeout=0.3) as scores,
    ):
        with pytest.raises(glowserve.RequestError, match=r"no answer within 0\.3 s") as caught:
            next(scores)
        assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
        until_idle(server)


@both
def test_a_service_that_is_not_there_is_unavailable(kind: str) -> None:
    with scores_of(kind, "127.0.0.1:1", BLANK) as scores:
        with pytest.raises(glowserve.RequestError) as caught:
            next(scores)
        assert caught.value.code is grpc.StatusCode.UNAVAILABLE


@both
def test_a_service_that_is_started_anew_meanwhile_loses_no_score(
    run_server: RunServer, digits: UInt8Array, embedded: Any, kind: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    images = (digits[i % 179] for i in range(1000))
    expected = embedded.score(digits).log_likelihood[np.arange(1000) % 179]
    with ExitStack() as first, scores_of(kind, f"127.0.0.1:{port}", images) as scores:
        first.enter_context(run_server(port=port))
        parts = [next(scores), next(scores)]
        first.close()
        with run_server(port=port) as server:
            parts.extend(scores)
            until_idle(server)
            assert streams_ended(server, "OK") == 1
    np.testing.assert_allclose(np.concatenate([part.log_likelihood for part in parts]), expected, rtol=1e-6)


class Moody(glow_service_pb2_grpc.GlowServiceServicer):
    """Answers some requests of each stream with the numbers of its images, and then ends it with a status.

    Args:
        answers: how many, for one stream after the other.
        code: the status.
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


@contextmanager
def serving(moody: Moody) -> Iterator[str]:
    with ThreadPoolExecutor() as pool:
        server = grpc.server(pool)
        glow_service_pb2_grpc.add_GlowServiceServicer_to_server(moody, server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        yield f"127.0.0.1:{port}"
        server.stop(None).wait()


def numbered(n: int) -> Iterator[UInt8Array]:
    return (np.full((8, 8), i % 256, np.uint8) for i in range(n))


@both
@pytest.mark.parametrize("answers", [[3, 1, 6], [10], [9, 1], [1, 0, 0, 9]])
def test_what_a_stream_leaves_unanswered_is_sent_once_more(kind: str, answers: list[int]) -> None:
    """Ten requests. gRPC itself tries streams again that answered nothing; the last may end as it likes."""
    moody = Moody([*answers, 10, 10], grpc.StatusCode.UNAVAILABLE)
    with serving(moody) as target, scores_of(kind, target, numbered(640)) as scores:
        found = [row for part in scores for row in part.log_likelihood]
    assert found == [i % 256 for i in range(640)]
    assert len(moody.answers) >= 1


def test_a_stream_that_ends_early_is_an_error_after_the_answers() -> None:
    found: list[glowserve.Scores] = []
    moody = Moody([3, 10], grpc.StatusCode.OK)
    with serving(moody) as target, scores_of("Client", target, numbered(640)) as scores:
        with pytest.raises(glowserve.RequestError, match="ended the stream before it had answered"):
            found.extend(scores)
        assert (len(found), moody.answers) == (3, [10])


@both
def test_a_refusal_keeps_its_status_whatever_is_written_when_it_comes(
    server: Server, digits: UInt8Array, kind: str
) -> None:
    """The tenth request, of many that are on their way; grpc.aio loses such a status about every other time."""
    for _ in range(8):
        images = [*itertools.repeat(digits[0], 577), np.zeros((9, 9, 1), np.uint8), *digits, *digits]
        found: list[glowserve.Scores] = []
        with (
            scores_of(kind, address(server), iter(images)) as scores,
            pytest.raises(glowserve.RequestError) as caught,
        ):
            found.extend(scores)
        assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT
        assert caught.value.message.startswith("images.tensor.shape is [1, 9, 9, 1]")
        assert caught.value.reason == "INVALID_REQUEST"
        assert sum(map(len, found)) == 577
    until_idle(server)


@both
def test_a_refusal_of_the_call_keeps_its_status_however_large_the_first_request(
    run_server: RunServer, tmp_path: Path, kind: str
) -> None:
    (tmp_path / "tokens").write_text("operator " + "b" * 32 + " admin\n")
    with run_server(tokens=tmp_path / "tokens") as server:
        for _ in range(3):
            with scores_of(kind, address(server), itertools.repeat(bytes(2**22))) as scores:
                with pytest.raises(glowserve.RequestError) as caught:
                    next(scores)
                assert caught.value.code is grpc.StatusCode.UNAUTHENTICATED
