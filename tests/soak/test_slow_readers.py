"""Callers that open streams and do not read them cost little, and nothing once they are gone."""

from __future__ import annotations

import asyncio
import multiprocessing
import random
import time

import grpc
import numpy as np

from tests.soak.callers import NO_RETRIES, WELL_BEHAVED, Caller, Known, open_streams
from tests.soak.conftest import Serve, Service, table, wait_for

PROCESSES = 4
STREAMS = 100
SAMPLES = 10_000
ROUNDS = 3
SECONDS = 6.0
# What fits into the buffers of gRPC and of the kernel on its way, and the call itself.
MOST_KIB_A_STREAM = 512
# Of the 99th percentile of other callers' times: nobody waits for a stream, but the machine has more to do.
MOST_SLOWER = 3.0


def test_streams_that_nobody_reads_leave_memory_and_other_callers_alone(serve: Serve, known: Known) -> None:
    context = multiprocessing.get_context("spawn")
    held, left, slower = list[float](), list[float](), list[float]()
    with serve() as service:
        usual = p99(service, known)
        before = service.seen()
        for _ in range(ROUNDS):
            opened = context.Queue()
            arguments = (service.target, known, STREAMS // PROCESSES, SAMPLES, opened)
            readers = [context.Process(target=open_streams, args=arguments) for _ in range(PROCESSES)]
            for reader in readers:
                reader.start()
            for _ in readers:
                opened.get(timeout=120)
            wait_for(lambda: service.total("glowserve_requests_in_flight") == STREAMS)
            wait_for(lambda: is_at_rest(service), 300)
            with service.watched() as sights:
                slower.append(p99(service, known) / usual)
            assert (
                service.total("glowserve_requests_in_flight") == STREAMS
            )  # none of them has come to its end
            held.append(max(sight.rss for sight in sights))
            threads = max(sight.threads for sight in sights)
            for reader in readers:
                reader.kill()
                reader.join()
            wait_for(lambda: service.total("glowserve_requests_in_flight") == 0)
            wait_for(lambda: service.total("glowserve_queue_length") == 0)
            wait_for(lambda: service.seen().files <= before.files)
            left.append(service.seen().rss)
        after = service.seen()
        text = service.log.read_text()
    kib = (max(held) - before.rss) / STREAMS / 2**10
    table(
        f"{STREAMS} streams that nobody reads, {ROUNDS} times: Sample of {SAMPLES}, and ModelStreamInfer",
        [
            ("RSS before, MiB", f"{before.rss / 2**20:.1f}"),
            ("most while they are open, MiB, by round", ", ".join(f"{rss / 2**20:.1f}" for rss in held)),
            ("after they are gone, MiB, by round", ", ".join(f"{rss / 2**20:.1f}" for rss in left)),
            (f"KiB a stream, at most (the bound is {MOST_KIB_A_STREAM})", f"{kib:.0f}"),
            ("p99 of 8 other callers before, ms", f"{1000 * usual:.1f}"),
            ("times that while they are open, by round", ", ".join(f"{times:.2f}" for times in slower)),
            ("threads before, while open, after", f"{before.threads}, {threads}, {after.threads}"),
            ("open files before, after", f"{before.files}, {after.files}"),
        ],
    )
    assert "Traceback" not in text
    assert kib < MOST_KIB_A_STREAM
    # A later round finds the memory of the first one. How much of it went back to the system in between is luck: the
    # allocator gives back what lies at the end.
    assert max(held) < 1.05 * held[0]
    assert after.threads <= threads
    assert np.median(slower) < MOST_SLOWER


def is_at_rest(service: Service) -> bool:
    """Whether no batch runs for a second: the buffers on the way to all streams are full."""
    batches = service.total("glowserve_batches_total")
    time.sleep(1)
    return service.total("glowserve_batches_total") == batches


def p99(service: Service, known: Known) -> float:
    """Of the seconds that the calls of 8 callers take."""

    async def measure() -> list[float]:
        took, end = list[float](), time.monotonic() + SECONDS

        async def work(caller: Caller, number: int) -> None:
            luck = random.Random(number)
            while (began := time.monotonic()) < end:
                assert await caller.call(luck.choice(WELL_BEHAVED), luck) == "OK"
                took.append(time.monotonic() - began)

        async with grpc.aio.insecure_channel(service.target, NO_RETRIES) as channel:
            caller = Caller(channel, {known.version: known})
            await asyncio.gather(*(work(caller, number) for number in range(8)))
        return took

    return float(np.quantile(asyncio.run(measure()), 0.99))
