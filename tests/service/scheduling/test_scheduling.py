"""Whose rows run next: turns, deadlines, and who is refused at once."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
import pytest
from glowserve_service.errors import DeadlineError, QueueFullError, WaitTooLongError
from glowserve_service.scheduling.batcher import (
    Batcher,
    Rows,
    Run,
    Workers,
)
from glowserve_service.server import Server
from google.protobuf.message import Message

from glowserve.images import UInt8Array
from glowserve.oip import grpc_service_pb2 as oip
from glowserve.oip.grpc_service_pb2_grpc import GRPCInferenceServiceStub
from glowserve.runtime.config import bucket_sizes
from glowserve.runtime.engine import Engine, Reverse
from glowserve.v1 import glow_service_pb2 as pb
from glowserve.v1 import tensor_pb2
from glowserve.v1.glow_service_pb2_grpc import GlowServiceStub
from tests.service.wire import raw, wait_for

Array = npt.NDArray[np.int64]

# Far longer than anything here takes.
PATIENCE = 60


class Stepping:
    """Doubles rows, remembers batches, and runs one each time that `step` is called; `open` lets all run."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self._steps = threading.Semaphore(0)

    def __call__(self, rows: Array) -> Rows:
        self.batches.append(rows.tolist())
        assert self._steps.acquire(timeout=PATIENCE)
        return (rows * 2,)

    async def step(self) -> None:
        """Ends the batch that runs, and waits until the next one does."""
        n = len(self.batches)
        self._steps.release()
        await until(lambda: len(self.batches) > n)

    def let_one_run(self) -> None:
        self._steps.release()

    def open(self) -> None:
        self._steps.release(100_000)


@asynccontextmanager
async def batching(
    function: Callable[..., Rows], *, workers: Workers | None = None, **settings: Any
) -> AsyncIterator[Batcher]:
    own = workers or Workers(1)
    batcher = Batcher(function, own, **{"max_batch_size": 32, "max_queue_size": 10_000} | settings)
    try:
        yield batcher
    finally:
        if isinstance(function, Stepping):
            function.open()
        await asyncio.wait_for(batcher.close(), PATIENCE)
        if not workers:
            own.close()


def ask(batcher: Batcher, rows: range, **options: Any) -> asyncio.Task[Rows]:
    return asyncio.create_task(batcher.submit(np.array(rows), **options))


async def answer_of(task: asyncio.Task[Rows]) -> list[int]:
    (doubled,) = await asyncio.wait_for(task, PATIENCE)
    return list(doubled.tolist())


def doubled(rows: range) -> list[int]:
    return [2 * row for row in rows]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.001)


def soon(seconds: float) -> float:
    return time.monotonic() + seconds


# Turns.


def test_a_small_call_behind_a_large_one_is_in_the_next_batch() -> None:
    async def run() -> None:
        function = Stepping()
        async with batching(function) as batcher:
            large = ask(batcher, range(256))
            await until(lambda: len(function.batches) == 1)
            small = ask(batcher, range(1000, 1001))
            await until(lambda: batcher.queue_length == 225)
            await function.step()
            assert 1000 in function.batches[1]
            late = ask(batcher, range(2000, 2003))
            await until(lambda: batcher.queue_length == 225 - 32 + 3)
            await function.step()
            assert await answer_of(small) == [2000]
            assert {2000, 2001, 2002} < set(function.batches[2])
            assert not large.done()
            function.open()
            assert await answer_of(late) == [4000, 4002, 4004]
            assert await answer_of(large) == doubled(range(256))
        sizes = [len(batch) for batch in function.batches]
        assert sizes == [32] * 8 + [4]  # as few as there can be
        of_large = [row for batch in function.batches for row in batch if row < 1000]
        assert of_large == list(range(256))

    asyncio.run(run())


def test_large_calls_take_turns() -> None:
    async def run() -> None:
        function = Stepping()
        async with batching(function, max_batch_size=8) as batcher:
            tasks = [ask(batcher, range(first, first + 32)) for first in (0, 100, 200)]
            await until(lambda: batcher.queue_length == 88)
            function.open()
            for task, first in zip(tasks, (0, 100, 200), strict=True):
                assert await answer_of(task) == doubled(range(first, first + 32))
        assert [{row // 100 for row in batch} for batch in function.batches] == [{0}, {1}, {2}] * 4

    asyncio.run(run())


def test_parts_of_a_long_call_let_small_ones_go_first() -> None:
    """As Sample submits them: a batch at a time, several at once."""

    async def run() -> None:
        function = Stepping()
        async with batching(function, max_batch_size=8) as batcher:
            parts = [ask(batcher, range(first, first + 8), long=True) for first in range(0, 64, 8)]
            await until(lambda: batcher.queue_length == 56)
            small = ask(batcher, range(1000, 1002))
            await until(lambda: batcher.queue_length == 58)
            await function.step()
            assert {1000, 1001} < set(function.batches[1])
            function.open()
            assert await answer_of(small) == [2000, 2002]
            for i, part in enumerate(parts):
                assert await answer_of(part) == doubled(range(8 * i, 8 * i + 8))
        assert [len(batch) for batch in function.batches] == [8] * 8 + [2]

    asyncio.run(run())


def test_a_flood_of_small_calls_does_not_starve_a_large_one() -> None:
    async def run() -> None:
        function = Stepping()
        async with batching(function, max_batch_size=8) as batcher:
            flood = [ask(batcher, range(i, i + 1)) for i in range(80)]
            await until(lambda: len(function.batches) == 1)
            large = ask(batcher, range(1000, 1016))
            await until(lambda: batcher.queue_length == 72 + 16)
            for _ in range(9):
                await function.step()
            of_large = [sum(row >= 1000 for row in batch) for batch in function.batches]
            assert of_large == [0, 0, 4, 0, 4, 0, 4, 0, 4, 0]
            function.open()
            assert await answer_of(large) == doubled(range(1000, 1016))
            for i, each in enumerate(flood):
                assert await answer_of(each) == [2 * i]
        small = [row for batch in function.batches for row in batch if row < 1000]
        assert small == list(range(80))

    asyncio.run(run())


def test_what_long_calls_do_not_need_of_their_half_small_ones_have() -> None:
    async def run() -> None:
        function = Stepping()
        async with batching(function, max_batch_size=8) as batcher:
            flood = [ask(batcher, range(i, i + 1)) for i in range(40)]
            await until(lambda: len(function.batches) == 1)
            part = ask(batcher, range(1000, 1001), long=True)
            await until(lambda: batcher.queue_length == 33)
            function.open()
            await asyncio.wait_for(asyncio.gather(part, *flood), PATIENCE)
        assert [len(batch) for batch in function.batches] == [8, 8, 8, 8, 8, 1]
        assert 1000 in function.batches[2]

    asyncio.run(run())


def test_a_small_call_larger_than_half_a_batch_is_not_starved_either() -> None:
    async def run() -> None:
        function = Stepping()
        async with batching(function, max_batch_size=8) as batcher:
            large = ask(batcher, range(80))
            await until(lambda: len(function.batches) == 1)
            calls = [ask(batcher, range(first, first + 7)) for first in (100, 200, 300)]
            await until(lambda: batcher.queue_length == 72 + 21)
            function.open()
            await asyncio.wait_for(asyncio.gather(large, *calls), PATIENCE)
        firsts = [sum(row >= 100 for row in batch) for batch in function.batches[1:4]]
        assert firsts == [7, 7, 7]

    asyncio.run(run())


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_turns_come_to_an_end_whatever_the_size_of_a_batch(size: int) -> None:
    rng = np.random.default_rng(size)

    async def run() -> None:
        function = Stepping()
        function.open()
        async with batching(function, max_batch_size=size) as batcher:
            ranges = [range(1000 * i, 1000 * i + int(rng.integers(1, 40))) for i in range(60)]
            tasks = [ask(batcher, rows, long=bool(rng.random() < 0.3)) for rows in ranges]
            for task, rows in zip(tasks, ranges, strict=True):
                assert await answer_of(task) == doubled(rows)
        assert Counter(row for batch in function.batches for row in batch) == Counter(
            row for rows in ranges for row in rows
        )
        for rows in ranges:
            ran = [row for batch in function.batches for row in batch if row // 1000 == rows[0] // 1000]
            assert ran == list(rows)

    asyncio.run(run())


def test_lanes_that_share_a_worker_take_turns() -> None:
    order: list[str] = []
    gate = threading.Event()

    def lane(name: str) -> Callable[..., Rows]:
        def function(rows: Array) -> Rows:
            order.append(name)
            assert gate.wait(PATIENCE)
            return (rows,)

        return function

    async def run() -> None:
        workers = Workers(1)
        async with (
            batching(lane("large"), workers=workers, max_batch_size=8) as one,
            batching(lane("small"), workers=workers, max_batch_size=8) as other,
        ):
            large = ask(one, range(64))
            await until(lambda: order == ["large"])
            small = ask(other, range(1))
            await until(lambda: other.queue_length == 1)
            gate.set()
            await asyncio.wait_for(asyncio.gather(large, small), PATIENCE)
        workers.close()

    asyncio.run(run())
    assert order.index("small") <= 2
    assert Counter(order) == {"large": 8, "small": 1}


# Deadlines.


def test_rows_whose_deadline_passes_in_the_queue_are_dropped_and_counted() -> None:
    async def run() -> None:
        function, dropped = Stepping(), Counter[str]()

        def count(cause: str, rows: int) -> None:
            dropped[cause] += rows

        async with batching(function, max_batch_size=8, on_drop=count) as batcher:
            running = ask(batcher, range(1))
            await until(lambda: len(function.batches) == 1)
            late = ask(batcher, range(10, 13), deadline=soon(0.2))
            mate = ask(batcher, range(20, 22), deadline=soon(PATIENCE))
            late_too = ask(batcher, range(30, 60), deadline=soon(0.2))
            await until(lambda: batcher.queue_length == 35)
            await asyncio.sleep(0.25)
            with pytest.raises(DeadlineError):
                await asyncio.wait_for(batcher.submit(np.arange(4), deadline=soon(-0.01), admitted=True), 1)
            assert dropped == {"deadline": 4}
            function.open()
            for task, rows in ((late, 3), (late_too, 30)):
                with pytest.raises(DeadlineError, match=f"before {rows} images were run; allow more time"):
                    await answer_of(task)
            assert await answer_of(mate) == [40, 42]
            assert await answer_of(running) == [0]
            assert dropped == {"deadline": 37}
        assert function.batches == [[0], [20, 21]]

    asyncio.run(run())


def test_the_rest_of_a_large_call_is_dropped_when_its_deadline_passes() -> None:
    async def run() -> None:
        function, dropped = Stepping(), list[tuple[str, int]]()
        async with batching(function, on_drop=lambda *drop: dropped.append(drop)) as batcher:
            large = ask(batcher, range(256), deadline=soon(0.3))
            await until(lambda: len(function.batches) == 1)
            await asyncio.sleep(0.35)
            function.open()
            with pytest.raises(DeadlineError, match="before 224 images"):
                await answer_of(large)
            assert await answer_of(ask(batcher, range(2))) == [0, 2]
        assert dropped == [("deadline", 224)]
        assert len(function.batches) == 2

    asyncio.run(run())


@pytest.mark.parametrize(
    ("deadline", "cause"), [(math.inf, "cancelled"), (PATIENCE, "cancelled"), (0.5, "deadline")]
)
def test_what_a_caller_gives_up_is_counted_by_what_ended_it(deadline: float, cause: str) -> None:
    """gRPC cancels at the deadline, a trifle early."""

    async def run() -> None:
        function, dropped = Stepping(), list[tuple[str, int]]()
        async with batching(
            function, max_batch_size=8, on_drop=lambda *drop: dropped.append(drop)
        ) as batcher:
            began = time.monotonic()
            leaves = ask(batcher, range(20), deadline=began + deadline)
            await until(lambda: len(function.batches) == 1)
            await asyncio.sleep(0.492)
            leaves.cancel()
            with pytest.raises(asyncio.CancelledError):
                await leaves
            assert dropped == [(cause, 12)]
            function.open()
            assert await answer_of(ask(batcher, range(1))) == [0]
        assert dropped == [(cause, 12)]

    asyncio.run(run())


# Admission.


async def measured(batcher: Batcher, function: Stepping, seconds: float, times: int = 2) -> None:
    """Runs full batches of 8 that take so long."""
    for _ in range(times):
        n = len(function.batches)
        task = ask(batcher, range(8))
        while len(function.batches) == n:
            await asyncio.sleep(0.001)
        await asyncio.sleep(seconds)
        function.let_one_run()
        await answer_of(task)


def test_a_wait_beyond_the_deadline_is_refused_at_once() -> None:
    async def run() -> None:
        function, dropped = Stepping(), list[tuple[str, int]]()
        async with batching(
            function, max_batch_size=8, on_drop=lambda *drop: dropped.append(drop)
        ) as batcher:
            await measured(batcher, function, 0.1)
            tasks = [ask(batcher, range(8)) for _ in range(5)]
            await until(lambda: batcher.queue_length == 32)
            with pytest.raises(WaitTooLongError, match="32 images go before, which takes 0") as caught:
                await batcher.submit(np.arange(1), deadline=soon(0.05))
            assert 0.3 <= caught.value.retry_seconds < 0.8  # four batches, less what the caller would wait
            assert batcher.queue_length == 32
            tasks.append(ask(batcher, range(1)))
            tasks.append(ask(batcher, range(1), deadline=soon(PATIENCE)))
            tasks.append(ask(batcher, range(1), deadline=soon(PATIENCE), admitted=True))
            await until(lambda: batcher.queue_length == 35)
            function.open()
            for task in tasks:
                await answer_of(task)
        assert dropped == []
        assert sum(len(batch) for batch in function.batches) == 16 + 43

    asyncio.run(run())


def test_while_nothing_was_measured_nothing_is_refused() -> None:
    async def run() -> None:
        function = Stepping()
        async with batching(function, max_batch_size=8) as batcher:
            ahead = [ask(batcher, range(8)) for _ in range(4)]
            await until(lambda: batcher.queue_length == 24)
            tight = ask(batcher, range(1), deadline=soon(0.2))
            await until(lambda: batcher.queue_length == 25)
            await asyncio.sleep(0.25)
            function.open()
            with pytest.raises(DeadlineError):
                await answer_of(tight)
            await asyncio.wait_for(asyncio.gather(*ahead), PATIENCE)

    asyncio.run(run())


def test_an_idle_batcher_refuses_nothing_and_neither_do_longer_calls_than_ones_own_turn() -> None:
    async def run() -> None:
        function = Stepping()
        async with batching(function, max_batch_size=8) as batcher:
            await measured(batcher, function, 0.5, times=1)
            n = len(function.batches)
            tight = ask(batcher, range(1), deadline=soon(0.4))
            await until(lambda: len(function.batches) > n)
            # Rows of 50 seconds wait, and a small call is in the next batch all the same.
            large = [ask(batcher, range(80)) for _ in range(10)]
            await until(lambda: batcher.queue_length == 800)
            small = ask(batcher, range(3), deadline=soon(1))
            # For a call of 10 rows, the others have their turns with 10 each.
            medium = ask(batcher, range(10), deadline=soon(20))
            await until(lambda: batcher.queue_length == 813)
            function.open()
            await asyncio.wait_for(asyncio.gather(tight, *large, small, medium), PATIENCE)

    asyncio.run(run())


def test_an_estimate_from_small_batches_does_not_refuse_large_ones() -> None:
    """As on a GPU, where a batch takes as long as a row."""

    def function(rows: Array) -> Rows:
        time.sleep(0.01)
        return (rows * 2,)

    async def run() -> None:
        async with batching(function) as batcher:
            for _ in range(10):
                await answer_of(ask(batcher, range(1)))
            first = ask(batcher, range(256))
            await until(lambda: 0 < batcher.queue_length < 256)
            second = ask(batcher, range(256), deadline=soon(1.5))  # by rows alone it would be 2.2 s
            assert await answer_of(first) == await answer_of(second) == doubled(range(256))

    asyncio.run(run())


def test_an_estimate_from_full_batches_does_not_refuse_small_ones() -> None:
    """As on a CPU, where every row takes its time."""
    gate = threading.Event()
    gate.set()
    begun: list[int] = []

    def function(rows: Array) -> Rows:
        begun.append(len(rows))
        time.sleep(0.06 * len(rows))
        assert gate.wait(PATIENCE)
        return (rows * 2,)

    async def run() -> None:
        async with batching(function, max_batch_size=8) as batcher:
            await answer_of(ask(batcher, range(8)))
            gate.clear()
            running = ask(batcher, range(1))
            await until(lambda: begun == [8, 1])
            ahead = ask(batcher, range(2))
            await until(lambda: batcher.queue_length == 2)
            tight = ask(batcher, range(1), deadline=soon(0.4))  # a full batch takes 0.48 s
            await until(lambda: batcher.queue_length == 3)
            gate.set()
            await asyncio.wait_for(asyncio.gather(running, ahead, tight), PATIENCE)

    asyncio.run(run())


def test_a_full_queue_says_how_long_it_takes_until_there_is_room() -> None:
    async def run() -> None:
        function = Stepping()

        async def refused(batcher: Batcher, rows: int) -> float:
            with pytest.raises(QueueFullError) as caught:
                await batcher.submit(np.arange(rows))
            return caught.value.retry_seconds

        async with batching(function, max_batch_size=8, max_queue_size=32) as batcher:
            running = ask(batcher, range(8))
            await until(lambda: len(function.batches) == 1)
            waiting = ask(batcher, range(32))
            await until(lambda: batcher.queue_length == 32)
            assert await refused(batcher, 24) == 1.0  # nothing was measured
            waiting.cancel()
            function.let_one_run()
            await answer_of(running)
            await measured(batcher, function, 0.1, times=20)
            running = ask(batcher, range(8))
            await until(lambda: len(function.batches) == 22)
            waiting = ask(batcher, range(32))
            await until(lambda: batcher.queue_length == 32)
            assert 0.27 < await refused(batcher, 24) < 0.6
            assert 0.09 < await refused(batcher, 8) < 0.2
            function.open()
            await asyncio.wait_for(asyncio.gather(running, waiting), PATIENCE)

    asyncio.run(run())


# Padding.


def test_the_buckets_are_powers_of_two_and_the_largest_batch() -> None:
    assert bucket_sizes(1) == (1,)
    assert bucket_sizes(2) == (1, 2)
    assert bucket_sizes(32) == (1, 2, 4, 8, 16, 32)
    assert bucket_sizes(48) == (1, 2, 4, 8, 16, 32, 48)


def test_batches_are_padded_to_a_bucket_and_nobody_sees_it() -> None:
    shapes: list[tuple[tuple[int, ...], ...]] = []

    def function(numbers: Array, pairs: Array) -> Rows:
        shapes.append((numbers.shape, pairs.shape))
        assert pairs.dtype == np.float32
        return numbers * 2, pairs

    async def run() -> None:
        told: list[int] = []
        runs: list[Run] = []
        async with batching(
            function,
            max_batch_size=12,
            buckets=bucket_sizes(12),
            on_batch=lambda rows, _: told.append(rows),
            on_run=runs.append,
        ) as batcher:
            for size in (1, 3, 4, 5, 9, 12, 29):
                numbers = np.arange(size) + 1
                pairs = np.ones((size, 2), np.float32)
                answer = await batcher.submit(numbers, pairs)
                np.testing.assert_array_equal(answer[0], numbers * 2)
                np.testing.assert_array_equal(answer[1], pairs)
        sizes = [1, 3, 4, 5, 9, 12, 12, 12, 5]
        assert told == sizes
        assert [(run.rows, run.padding) for run in runs] == list(
            zip(sizes, [0, 1, 0, 3, 3, 0, 0, 0, 3], strict=True)
        )
        assert shapes == [((n,), (n, 2)) for n in (1, 4, 4, 8, 12, 12, 12, 12, 8)]

    asyncio.run(run())


# The service.


def latents(n: int) -> tensor_pb2.Tensor:
    return tensor_pb2.Tensor(dtype="DATA_TYPE_FLOAT32", shape=[n, 64], data=bytes(4 * 64 * n))


def value(server: Server, name: str, **labels: str) -> float:
    found = server.metrics.registry.get_sample_value(f"glowserve_{name}", {"model": "digits"} | labels)
    assert found is not None, name
    return found


@pytest.fixture
def patient(run_server: Callable[..., Any]) -> Iterator[tuple[Server, grpc.Channel]]:
    """A server whose images wait until a batch is full."""
    with (
        run_server(max_queue_delay_ms=600_000.0, drain_seconds=0.0) as server,
        grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel,
    ):
        yield server, channel


@pytest.mark.parametrize(
    ("method", "request_", "callers", "waiting"),
    [
        ("Decode", pb.DecodeRequest(latents=latents(256), format=pb.IMAGE_FORMAT_RAW), 18, 18 * 256 - 32),
        ("Sample", pb.SampleRequest(n=96, temperature=0, format=pb.IMAGE_FORMAT_RAW), 100, 99 * 32),
    ],
    ids=["Decode", "Sample"],
)
def test_a_small_call_to_the_service_goes_before_large_ones(
    run_server: Callable[..., Any],
    method: str,
    request_: Message,
    callers: int,
    waiting: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gate, reverse = threading.Event(), Engine.reverse

    def held(engine: Engine, latent: Any) -> Reverse:
        assert gate.wait(PATIENCE)
        return reverse(engine, latent)

    def ask_for_many(stub: GlowServiceStub) -> int:
        answer = getattr(stub, method)(request_)
        responses = list(answer) if method == "Sample" else [answer]
        return sum(response.images.tensor.shape[0] for response in responses)

    with (
        run_server(max_queue_size=8192, instances=1) as server,
        grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel,
        ThreadPoolExecutor(callers) as pool,
    ):
        monkeypatch.setattr(Engine, "reverse", held)
        stub = GlowServiceStub(channel)
        many = [pool.submit(ask_for_many, stub) for _ in range(callers)]
        wait_for(lambda: value(server, "queue_length", direction="reverse") >= waiting)
        before = value(server, "batch_size_count", direction="reverse")
        small = stub.Decode.future(pb.DecodeRequest(latents=latents(1)))
        wait_for(lambda: value(server, "queue_length", direction="reverse") > waiting)
        gate.set()
        small.result()
        batches = value(server, "batch_size_count", direction="reverse") - before
        each = 96 if method == "Sample" else 256
        assert [future.result() for future in many] == [each] * callers
    assert batches < waiting / 32 / 3  # in the order of arrival it would be all that wait


def test_the_service_counts_what_it_drops(patient: tuple[Server, grpc.Channel], digits: UInt8Array) -> None:
    server, channel = patient
    stub, infer = GlowServiceStub(channel), GRPCInferenceServiceStub(channel)
    image = {"name": "image", "datatype": "UINT8", "shape": [4, 8, 8, 1]}
    requests = oip.ModelInferRequest(
        model_name="digits", inputs=[image], raw_input_contents=[digits[:4].tobytes()]
    )
    for call, direction, images in (
        (lambda: stub.Score(pb.ScoreRequest(images=raw(digits[:5])), timeout=0.3), "forward", 5),
        (lambda: stub.Encode(pb.EncodeRequest(images=raw(digits[:6])), timeout=0.3), "forward", 6),
        (lambda: stub.Decode(pb.DecodeRequest(latents=latents(7)), timeout=0.3), "reverse", 7),
        (lambda: list(stub.Sample(pb.SampleRequest(n=8), timeout=0.3)), "reverse", 8),
        (lambda: infer.ModelInfer(requests, timeout=0.3), "forward", 4),
        (lambda: list(infer.ModelStreamInfer(iter([requests] * 2), timeout=0.3)), "forward", 8),
    ):
        before = value(server, "dropped_images_total", direction=direction, cause="deadline")
        with pytest.raises(grpc.RpcError) as caught:
            call()
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        wait_for(lambda direction=direction: value(server, "queue_length", direction=direction) == 0)  # type: ignore[misc]
        after = value(server, "dropped_images_total", direction=direction, cause="deadline")
        assert after - before == images
        assert value(server, "dropped_images_total", direction=direction, cause="cancelled") == 0
    leaves = stub.Score.future(pb.ScoreRequest(images=raw(digits[:5])), timeout=60)
    wait_for(lambda: value(server, "queue_length", direction="forward") == 5)
    leaves.cancel()
    wait_for(lambda: value(server, "queue_length", direction="forward") == 0)
    assert value(server, "dropped_images_total", direction="forward", cause="cancelled") == 5
