"""CallRunner: leases, tickets, times and counts of one request, and how often it goes to the pool of threads."""

from __future__ import annotations

import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
from glowserve_service.config import ServiceConfig
from glowserve_service.front.call import Call
from glowserve_service.front.call_runner import CallRunner
from glowserve_service.models.model import Lease
from glowserve_service.observability.metrics import Metrics
from glowserve_service.observability.traffic import Traffic
from glowserve_service.scheduling.cpu_pool import CpuPool
from glowserve_service.scheduling.engine_threads import Rows
from glowserve_service.scheduling.submission import EXECUTION, QUEUE, Answer, StageTime
from glowserve_service.scheduling.ticket import AdmissionGate, Ticket
from PIL import Image

from glowserve.images import UInt8Array, encode_png
from glowserve.pictures import Pictures
from glowserve.runtime import glow_service, operations
from glowserve.runtime.attributes import Attributes, bundle_attributes
from glowserve.runtime.draws import Draw
from glowserve.runtime.engine import Engine, Float32Array
from glowserve.runtime.errors import InvalidRequestError, NotFiniteError
from glowserve.runtime.repository import Bundle
from glowserve.runtime.runner import PREPARATION, SERIALIZATION, Work
from glowserve.scores import Scorer
from glowserve.v1 import glow_service_pb2 as pb
from tests.glowserve.pictures import png_with
from tests.service.wire import encoded, file_of, latent_tensor, raw

T = TypeVar("T")

LARGE = 1 << 20
"""Bytes of work that is worth a thread."""


class Lane:
    """In place of a model's lane: runs rows at once, and keeps their tickets."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self.tickets: list[Ticket] = []

    async def run(self, *rows: Any, ticket: Ticket) -> Answer:
        self.tickets.append(ticket)
        began = time.monotonic()
        results = self._function(*rows)
        times = [StageTime(QUEUE, began - 2, began), StageTime(EXECUTION, began, began + 3)]
        return Answer(results, times)


class Model:
    """In place of a served model."""

    def __init__(self, bundle: Bundle, engine: Engine, metrics: Metrics) -> None:
        self.name, self.version, self.bundle = "digits", 1, bundle
        self.scorer, self.attributes = Scorer(bundle.manifest), bundle_attributes(bundle)

        def forward(images: UInt8Array, noise: Float32Array) -> Rows:
            result = engine.forward(images, noise)
            return *vars(result).values(), *self.scorer.likelihoods(result.log_likelihood)

        self.forward, self.reverse = (
            Lane(forward),
            Lane(lambda latent: tuple(vars(engine.reverse(latent)).values())),
        )
        self.not_finite = lambda method: metrics.not_finite.labels(self.name, method)
        self.redrawn = metrics.redrawn_samples.labels(self.name)
        self.traffic = Traffic(self.name, self.version)
        self._leases = 0

    def hold(self) -> None:
        self._leases += 1

    def release(self) -> None:
        self._leases -= 1


class Processes:
    """In place of the processes that decode pictures."""

    def __init__(self) -> None:
        self.trips = 0

    async def decode(self, pictures: Pictures) -> UInt8Array:
        self.trips += 1
        return pictures.decode()


class Pool(CpuPool):
    """Keeps the tickets of the work that it gets, and the names of the threads that do it."""

    def __init__(self) -> None:
        self.decoders = Processes()
        super().__init__(1, max_images=1000, decoders=self.decoders)  # type: ignore[arg-type]
        self.tickets: list[Ticket] = []
        self.threads: list[str] = []

    async def run(self, function: Callable[[], T], ticket: Ticket, *, images: int, size: int) -> T:
        def noted() -> T:
            self.threads.append(threading.current_thread().name)
            return function()

        self.tickets.append(ticket)
        return await super().run(noted, ticket, images=images, size=size)

    @property
    def trips(self) -> int:
        """How much work was done in another thread or process."""
        elsewhere = sum(name != threading.main_thread().name for name in self.threads)
        return elsewhere + self.decoders.trips


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def model(bundle: Bundle, engine: Engine, metrics: Metrics) -> Model:
    return Model(bundle, engine, metrics)


@pytest.fixture
def pool() -> Iterator[Pool]:
    pool = Pool()
    yield pool
    pool.close()


@pytest.fixture
def call() -> Call:
    return Call("Score", "order-17")


MakeRunner = Callable[..., CallRunner]


@pytest.fixture
def make_runner(model: Model, call: Call, pool: Pool) -> MakeRunner:
    limits = ServiceConfig(repository=Path()).limits

    def make(ticket: Ticket = Ticket()) -> CallRunner:  # noqa: B008  # it is immutable
        return CallRunner(Lease(model), call, ticket, pool, limits)  # type: ignore[arg-type]

    return make


def work(stage: str = PREPARATION, size: int = LARGE) -> Work[str]:
    return Work(lambda: "done", 1, size, stage)


# The lease and the call


async def test_a_model_is_leased_inside_and_named_by_the_call(
    make_runner: MakeRunner, model: Model, call: Call
) -> None:
    assert call.model == ""
    async with make_runner() as runner:
        assert runner.bundle is model.bundle
        assert runner.scorer is model.scorer
        assert model._leases == 1
    assert model._leases == 0
    assert (call.model, call.version) == ("digits", 1)


async def test_an_error_releases_the_lease(make_runner: MakeRunner, model: Model) -> None:
    async def fail() -> None:
        async with make_runner():
            raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011
        await fail()
    assert model._leases == 0


async def test_expected_images_are_added_to_the_call(make_runner: MakeRunner, call: Call) -> None:
    async with make_runner() as runner:
        runner.expect(3)
        runner.part(Ticket()).expect(4)
    assert call.images == 7


async def test_images_without_a_finite_answer_are_counted_by_method(
    make_runner: MakeRunner, metrics: Metrics
) -> None:
    def counted() -> float | None:
        labels = {"model": "digits", "method": "Score"}
        return metrics.registry.get_sample_value("glowserve_not_finite_images_total", labels)

    async def fail(error: Exception) -> None:
        async with make_runner():
            raise error

    async with make_runner() as runner:
        runner.count_not_finite(2)
    assert counted() == 2
    with pytest.raises(NotFiniteError):
        await fail(NotFiniteError("image 3 is not finite", 5))
    assert counted() == 7
    with pytest.raises(RuntimeError):
        await fail(RuntimeError("a fault"))
    assert counted() == 7


# Times


async def test_the_times_of_work_and_of_batches_are_recorded(
    make_runner: MakeRunner, call: Call, digits: UInt8Array
) -> None:
    noise = np.full(digits[:2].shape, 0.5, np.float32)
    async with make_runner() as runner:
        await runner.compute(Work(lambda: time.sleep(0.01), 1, LARGE))
        forward = await runner.forward(digits[:2], noise)
        await runner.reverse(forward.latent)
        await runner.compute(work(SERIALIZATION))
    assert call.seconds.keys() == {PREPARATION, QUEUE, EXECUTION, SERIALIZATION}
    assert call.seconds[PREPARATION] >= 0.01
    assert call.seconds[QUEUE] == pytest.approx(2 * 2)
    assert call.seconds[EXECUTION] == pytest.approx(2 * 3)


async def test_the_time_of_work_that_fails_is_recorded_too(make_runner: MakeRunner, call: Call) -> None:
    def fail() -> None:
        raise ValueError("no picture")

    async with make_runner() as runner:
        with pytest.raises(ValueError, match="no picture"):
            await runner.compute(Work(fail, 1, LARGE))
    assert PREPARATION in call.seconds


# Tickets


async def test_only_the_first_work_in_the_pool_and_in_a_lane_may_be_refused(
    make_runner: MakeRunner, model: Model, pool: Pool, digits: UInt8Array
) -> None:
    first = Ticket(deadline=time.monotonic() + 1000, long=True, gate=AdmissionGate())
    later = Ticket(first.deadline, first=False, long=True, gate=first.gate)
    noise = np.full(digits[:2].shape, 0.5, np.float32)
    async with make_runner(first) as runner:
        await runner.compute(work())
        await runner.compute(work())
        forward = await runner.forward(digits[:2], noise)
        await runner.reverse(forward.latent)
        await runner.compute(work(SERIALIZATION))
    assert pool.tickets == [first, later, later]
    assert (model.forward.tickets, model.reverse.tickets) == ([first], [later])


async def test_samples_are_drawn_again_with_tickets_that_are_not_refused(
    make_runner: MakeRunner, model: Model, pool: Pool, metrics: Metrics
) -> None:
    first = Ticket(deadline=time.monotonic() + 1000, long=True, gate=AdmissionGate())
    later = Ticket(first.deadline, first=False, long=True, gate=first.gate)
    async with make_runner(first) as runner:
        await operations.sample(runner, [Draw(0, index, 3e38) for index in range(40)])
    assert pool.tickets == [first, later, later]
    assert model.reverse.tickets == [first, later, later]
    assert metrics.registry.get_sample_value("glowserve_redrawn_samples_total", {"model": "digits"}) == 80


async def test_after_a_batch_no_work_in_the_pool_is_refused(
    make_runner: MakeRunner, pool: Pool, digits: UInt8Array
) -> None:
    noise = np.full(digits[:2].shape, 0.5, np.float32)
    async with make_runner() as runner:
        await runner.forward(digits[:2], noise)
        await runner.compute(work(SERIALIZATION))
    assert [ticket.first for ticket in pool.tickets] == [False]


async def test_a_part_has_a_ticket_of_its_own_under_the_same_lease(
    make_runner: MakeRunner, model: Model, pool: Pool
) -> None:
    later = Ticket(first=False, gate=AdmissionGate())
    async with make_runner() as runner:
        await runner.part(later).compute(work())
        await runner.compute(work())
        assert model._leases == 1
    assert pool.tickets == [later, Ticket()]


# Trips to threads and processes


async def trips(runner: CallRunner, pool: Pool, answer: Any, request: Any) -> int:
    pool.threads.clear()
    pool.decoders.trips = 0
    async with runner:
        await answer(runner, request)
    return pool.trips


async def test_a_few_small_pictures_take_no_trip_and_others_one_and_one_for_their_noise(
    make_runner: MakeRunner, pool: Pool, digits: UInt8Array
) -> None:
    for n, expected in ((1, 0), (4, 0), (5, 2), (20, 2)):
        files = [encode_png(image) for image in digits[:n]]
        request = pb.ScoreRequest(images=encoded(*files))
        assert await trips(make_runner(), pool, glow_service.score, request) == expected


@pytest.mark.parametrize(
    "data",
    [
        file_of(Image.new("1", (200, 200)), "PNG"),
        file_of(Image.new("L", (8, 8)), "JPEG"),
        file_of(Image.new("L", (8, 8)), "WEBP"),
        png_with(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(10**6))),
        png_with(b"eXIf", b"MM"),
        png_with(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(10**6)), last=True),
        png_with(b"tIME", b"", times=17),
        png_with(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 0, 0, 0, 0), first=(4000, 4000)),
        b"",
    ],
    ids=["large", "jpeg", "webp", "text", "exif", "text at the end", "chunks", "two headers", "empty"],
)
async def test_a_picture_whose_work_is_not_in_its_header_is_never_decoded_on_the_event_loop(
    make_runner: MakeRunner, pool: Pool, data: bytes
) -> None:
    request = pb.ScoreRequest(images=encoded(data))
    with suppress(InvalidRequestError):
        await trips(make_runner(), pool, glow_service.score, request)
    assert pool.decoders.trips == 1


async def test_a_small_tensor_takes_no_trip_and_a_large_one_takes_one_for_its_noise(
    make_runner: MakeRunner, pool: Pool, digits: UInt8Array
) -> None:
    for n, expected in ((1, 0), (4, 0), (5, 1), (100, 1)):
        request = pb.ScoreRequest(images=raw(digits[:n]))
        assert await trips(make_runner(), pool, glow_service.score, request) == expected


async def test_a_tensor_is_encoded_without_a_trip_and_many_pictures_with_one(
    make_runner: MakeRunner, pool: Pool, digits: UInt8Array
) -> None:
    request = pb.EncodeRequest(images=raw(digits))
    assert await trips(make_runner(), pool, glow_service.encode, request) == 0
    assert pool.tickets == []
    request = pb.EncodeRequest(images=encoded(*map(encode_png, digits[:5])))
    assert await trips(make_runner(), pool, glow_service.encode, request) == 1


async def test_few_small_latents_are_moved_without_a_trip_and_many_with_one(
    make_runner: MakeRunner, model: Model, pool: Pool
) -> None:
    model.attributes = Attributes(("up",), np.ones((1, 64), np.float32), np.ones(1, np.float32))
    for n, expected in ((3, 0), (256, 1)):
        request = pb.ManipulateRequest(
            latents=latent_tensor(np.zeros((1, 64), np.float32)),
            attributes=["up"],
            strengths=[0.01] * n,
            format=pb.IMAGE_FORMAT_RAW,
        )
        assert await trips(make_runner(), pool, glow_service.manipulate, request) == expected


async def test_writing_many_png_files_is_one_trip(
    make_runner: MakeRunner, pool: Pool, digits: UInt8Array
) -> None:
    for form, expected in ((pb.IMAGE_FORMAT_RAW, 0), (pb.IMAGE_FORMAT_PNG, 1)):
        request = pb.InterpolateRequest(images=raw(digits[:2]), steps=9, format=form)
        assert await trips(make_runner(), pool, glow_service.interpolate, request) == expected
