"""`score_set` of every client: what it reads and when, what it sends again, and how it fails."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from glowserve_service.server import Server

import glowserve
from glowserve.client import set_requests
from glowserve.images import UInt8Array, encode_png
from glowserve.v1 import glow_service_pb2 as pb
from glowserve.v1.glow_service_pb2_grpc import GlowServiceServicer
from tests.client.blocking import Connect
from tests.client.forms import FORMS, save_five
from tests.client.serving import refusal, serve
from tests.servers import RunServer
from tests.service.metrics import ended, in_flight
from tests.service.stubs import address
from tests.service.wire import wait_for

SEVERAL = {name: make for name, (make, n) in FORMS.items() if n > 1}


def test_a_set_is_scored_by_every_client(answering: glowserve.Client, digits: UInt8Array) -> None:
    found = answering.score_set(digits[:150], model="digits", version=1)
    assert (found.n, found.model, found.version, found.not_finite) == (150, "digits", 1, 0)
    assert 0.001 < found.p_value <= 1
    assert found.resolution == 1e-4
    assert 0 <= found.anomalous < 0.2
    assert 0 < found.bits_per_dim < 8
    assert all(isinstance(each, glowserve.FeatureDifference) for each in found.features)
    assert answering.score_set(255 - digits[:20]).p_value == 1e-4


@pytest.mark.parametrize("make", SEVERAL.values(), ids=SEVERAL)
def test_images_are_taken_in_every_form(
    embedded: glowserve.Client, digits: UInt8Array, tmp_path: Path, make: Callable[[Any], Any]
) -> None:
    five = save_five(digits[:5], tmp_path)
    found = embedded.score_set(make(five))
    assert found.bits_per_dim == pytest.approx(embedded.score(digits[:5]).bits_per_dim.mean(), rel=1e-5)


def test_images_are_read_as_they_are_sent(
    answering: glowserve.Client, digits: UInt8Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A set of any size needs little memory: nothing but features is kept."""
    monkeypatch.setattr(set_requests, "_KEPT_BYTES", 0)
    alive = most = 0

    class Image:
        """Counts how many there are at once."""

        def __init__(self, array: UInt8Array) -> None:
            nonlocal alive, most
            alive, self._array = alive + 1, array
            most = max(most, alive)

        def __array__(self, dtype: Any = None, copy: Any = None) -> UInt8Array:
            return self._array

        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    assert answering.score_set(Image(digits[i % 170]) for i in range(2000)).n == 2000
    assert most <= 65


@pytest.mark.parametrize("bad", [b"no picture", "/no/such/file.png", np.zeros((9, 9), np.uint8), 7])
def test_a_bad_image_is_named_by_its_index_among_all(
    answering: glowserve.Client, digits: UInt8Array, bad: Any
) -> None:
    images = [*(encode_png(image) for image in digits[:100]), bad, *digits[:5]]
    with pytest.raises((glowserve.RequestError, glowserve.InvalidImageError, OSError, TypeError)) as caught:
        answering.score_set(iter(images))
    if isinstance(bad, bytes):
        assert isinstance(caught.value, glowserve.RequestError)
        assert caught.value.message.startswith("images.encoded.data[100]: 10 bytes are not a picture")
        assert not caught.value.field.startswith("requests")
    assert answering.score_set(digits[:2]).n == 2


def test_an_error_of_the_iterable_is_raised_as_it_is_and_ends_the_call(
    connect: Connect, run_server: RunServer, digits: UInt8Array
) -> None:
    def images(server: Server) -> Iterator[UInt8Array]:
        yield from digits[:100]
        wait_for(lambda: in_flight(server) == 1)
        raise LookupError("no more of them")

    with run_server() as server:
        with connect(address(server)) as client, pytest.raises(LookupError, match="no more of them"):
            client.score_set(images(server))
        wait_for(lambda: in_flight(server) == 0)


@pytest.mark.parametrize(
    ("images", "words"),
    [([], "the set has 0"), (iter(()), "the set has 0"), ([np.zeros((8, 8), np.uint8)], "the set has 1")],
)
def test_too_few_images_are_refused(answering: glowserve.Client, images: Any, words: str) -> None:
    with pytest.raises(glowserve.RequestError, match=words) as caught:
        answering.score_set(images)
    assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("arguments", "error"),
    [({"images": 3}, TypeError), ({"version": -1}, ValueError), ({"model": 3}, TypeError)],
)
def test_arguments_of_wrong_types_are_refused(
    answering: glowserve.Client, digits: UInt8Array, arguments: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        answering.score_set(**{"images": digits[:3]} | arguments)


# Limits of the service, and refusals


def test_a_set_fits_into_the_limits_of_the_service(
    connect: Connect, run_server: RunServer, digits: UInt8Array
) -> None:
    with run_server(max_images_per_call=7) as server, connect(address(server)) as client:
        assert client.score_set(iter(digits[:100])).n == 100
        assert client.score_set(image for image in digits[:100]).n == 100
        assert (
            ended(server, "ScoreSet", "INVALID_ARGUMENT", "digits")
            + ended(server, "ScoreSet", "INVALID_ARGUMENT", "")
            == 1
        )


class Refusing(GlowServiceServicer):
    """Refuses some calls, then answers with the number of images.

    Args:
        refusals: how many.
        after: how many requests it reads before each.
        seconds: the pause that it asks for.
    """

    def __init__(self, refusals: int, after: int, seconds: float | None = 0.05) -> None:
        self.left, self.after, self.seconds = refusals, after, seconds

    def ScoreSet(self, requests: Any, context: Any) -> pb.ScoreSetResponse:
        n = 0
        for i, request in enumerate(requests):
            if i == self.after and self.left:
                self.left -= 1
                context.abort_with_status(refusal("RESOURCE_EXHAUSTED", self.seconds))
            n += request.images.tensor.shape[0]
        return pb.ScoreSetResponse(n=n)


@pytest.mark.parametrize("after", [0, 3])
def test_a_set_that_is_refused_is_sent_again_whole(connect: Connect, digits: UInt8Array, after: int) -> None:
    with serve(Refusing(2, after)) as target, connect(target) as client:
        assert client.score_set(digits[i % 170] for i in range(1000)).n == 1000


def test_a_large_set_is_not_kept_and_its_refusal_is_raised(
    connect: Connect, digits: UInt8Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(set_requests, "_KEPT_BYTES", 64 * 100)
    with serve(Refusing(1, 9)) as target, connect(target) as client:
        with pytest.raises(glowserve.RequestError, match="not now"):
            client.score_set(digits[i % 170] for i in range(1000))
        assert client.score_set(digits[i % 170] for i in range(1000)).n == 1000


def test_a_refusal_without_a_pause_is_raised(connect: Connect, digits: UInt8Array) -> None:
    with (
        serve(Refusing(1, 0, None)) as target,
        connect(target) as client,
        pytest.raises(glowserve.RequestError),
    ):
        client.score_set(digits[:100])


class Silent(GlowServiceServicer):
    """Reads some requests, and never answers.

    Args:
        reads: how many; None for all.
    """

    def __init__(self, reads: int | None) -> None:
        self.reads, self.ended = reads, threading.Event()

    def ScoreSet(self, requests: Any, context: Any) -> pb.ScoreSetResponse:
        context.add_callback(self.ended.set)
        for i, _ in enumerate(requests):
            if i + 1 == self.reads:
                break
        self.ended.wait(60)
        return pb.ScoreSetResponse()


@pytest.mark.parametrize("reads", [1, None])
def test_a_service_that_takes_or_answers_nothing_is_given_up(connect: Connect, reads: int | None) -> None:
    """Requests of 3.8 MB, so that no buffer takes all of them."""
    servicer = Silent(reads)
    images = (np.zeros((140, 140, 3), np.uint8) for _ in range(640 if reads else 20))
    with serve(servicer) as target, connect(target, timeout=1) as client:
        began = time.monotonic()
        with pytest.raises(glowserve.RequestError, match=r"DEADLINE_EXCEEDED.*within 1 s"):
            client.score_set(images)
        assert time.monotonic() - began < 30
        assert servicer.ended.wait(60)


def test_a_cancelled_task_ends_the_call(run_server: RunServer, digits: UInt8Array) -> None:
    go_on = threading.Event()

    def images() -> Iterator[UInt8Array]:
        yield from digits[:100]
        go_on.wait(60)

    async def run(server: Server) -> None:
        async with glowserve.AsyncClient(address(server)) as client:
            task = asyncio.create_task(client.score_set(images()))
            while in_flight(server) == 0:
                await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            wait_for(lambda: in_flight(server) == 0)
            go_on.set()

    with run_server() as server:
        asyncio.run(run(server))


def test_closing_the_client_ends_the_call(run_server: RunServer, digits: UInt8Array) -> None:
    go_on = threading.Event()

    def images() -> Iterator[UInt8Array]:
        yield from digits[:100]
        go_on.wait(60)
        yield from digits[:100]

    async def run(server: Server) -> None:
        client = glowserve.AsyncClient(address(server))
        task = asyncio.create_task(client.score_set(images()))
        while in_flight(server) == 0:
            await asyncio.sleep(0.01)
        await client.close()
        wait_for(lambda: in_flight(server) == 0)
        go_on.set()
        with pytest.raises((glowserve.RequestError, ValueError)):
            await task
        with pytest.raises(ValueError, match="the client is closed"):
            await client.score_set(digits[:3])

    with run_server() as server:
        asyncio.run(run(server))
