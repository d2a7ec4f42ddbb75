"""Streams that their callers do not read cost little memory, and none once their callers are gone."""

from __future__ import annotations

import asyncio
import multiprocessing
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from tests.soak.background_load import closed_load
from tests.soak.conftest import Serve
from tests.soak.known_answers import KnownAnswers
from tests.soak.report import mebibytes, print_table
from tests.soak.service import Service, Snapshot
from tests.soak.unread_streams import open_streams
from tests.soak.waiting import wait_until

PROCESSES = 4
STREAMS = 100
SAMPLES = 10_000
ROUNDS = 3
OTHER_CALLERS = 8
SECONDS = 6.0
"""Over which the answer times of the other callers are measured."""
MAX_KIB_PER_STREAM = 512
"""The call itself, and the buffers of gRPC and of the kernel."""
MAX_SLOWDOWN = 3.0
"""Of the other callers' p99: they do not wait for a stream, but the machine has more to do."""


async def test_unread_streams_cost_little_memory_and_do_not_delay_other_callers(
    serve: Serve, known: KnownAnswers
) -> None:
    held, left, slowdowns = list[int](), list[int](), list[float]()
    with serve() as service:
        usual = await p99_seconds(service, known)
        before = service.snapshot()
        for _ in range(ROUNDS):
            with unread_streams(service, known), service.monitored() as snapshots:
                slowdowns.append(await p99_seconds(service, known) / usual)
                assert service.total("glowserve_requests_in_flight") == STREAMS, "a stream has ended"
            held.append(max(each.rss for each in snapshots))
            threads = max(each.threads for each in snapshots)
            wait_until(lambda: service.total("glowserve_requests_in_flight") == 0, "no call is in flight")
            wait_until(lambda: service.total("glowserve_queue_length") == 0, "no image waits")
            wait_until(lambda: service.snapshot().files <= before.files, "no more files are open than before")
            left.append(service.snapshot().rss)
        after = service.snapshot()
        log = service.log.read_text()
    kib = (max(held) - before.rss) / STREAMS / 2**10
    print_streams(before, after, threads, held, left, usual, slowdowns, kib)
    assert "Traceback" not in log
    assert kib < MAX_KIB_PER_STREAM
    # Later rounds use the memory of the first one. How much of it the allocator returns to the system in between is
    # chance: it returns what lies at the end of its pools.
    assert max(held) < 1.05 * held[0]
    assert after.threads <= threads
    assert np.median(slowdowns) < MAX_SLOWDOWN


@contextmanager
def unread_streams(service: Service, known: KnownAnswers) -> Iterator[None]:
    """Open streams, for which the service has filled all buffers. Their processes are killed at the end."""
    context = multiprocessing.get_context("spawn")
    opened = context.Queue()
    arguments = (service.target, known, STREAMS // PROCESSES, SAMPLES, opened)
    readers = [context.Process(target=open_streams, args=arguments) for _ in range(PROCESSES)]
    try:
        for reader in readers:
            reader.start()
        for _ in readers:
            opened.get(timeout=120)
        wait_until(lambda: service.total("glowserve_requests_in_flight") == STREAMS, "all streams are open")
        wait_until(lambda: runs_no_batch(service), "all buffers are full", 300)
        yield
    finally:
        for reader in readers:
            reader.kill()
            reader.join()


def runs_no_batch(service: Service) -> bool:
    """Whether the service runs no batch for a second."""
    batches = service.total("glowserve_batches_total")
    time.sleep(1)
    return service.total("glowserve_batches_total") == batches


async def p99_seconds(service: Service, known: KnownAnswers) -> float:
    """The 99th percentile of the answer times of the other callers."""
    async with closed_load(service.target, {known.version: known}, callers=OTHER_CALLERS) as load:
        await asyncio.sleep(SECONDS)
    return float(np.quantile([call.seconds for call in load.ended], 0.99))


def print_streams(
    before: Snapshot,
    after: Snapshot,
    threads: int,
    held: list[int],
    left: list[int],
    usual: float,
    slowdowns: list[float],
    kib: float,
) -> None:
    print_table(
        f"{STREAMS} unread streams, {ROUNDS} times: Sample of {SAMPLES}, and ModelStreamInfer",
        [
            ("RSS before, MiB", mebibytes(before.rss)),
            ("largest RSS while they are open, MiB, by round", mebibytes(*held)),
            ("RSS after they have ended, MiB, by round", mebibytes(*left)),
            (f"KiB a stream, at most (the bound is {MAX_KIB_PER_STREAM})", f"{kib:.0f}"),
            (f"p99 of {OTHER_CALLERS} other callers before, ms", f"{1000 * usual:.1f}"),
            (
                "ratio of that while streams are open, by round",
                ", ".join(f"{each:.2f}" for each in slowdowns),
            ),
            ("threads before, while open, after", f"{before.threads}, {threads}, {after.threads}"),
            ("open files before, after", f"{before.files}, {after.files}"),
        ],
    )
