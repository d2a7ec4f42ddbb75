"""The wall clock jumps by a day, forwards and backwards, under load: only the log shows it.

libfaketime, which `make soak` installs, lets the wall clock of one process jump. The monotonic clock stays right, as
it does in a real jump.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import shutil
import time
from pathlib import Path

import grpc
import pytest

from glowserve.v1 import glow_service_pb2 as pb
from glowserve.v1.glow_service_pb2_grpc import GlowServiceStub
from tests.soak.background_load import closed_load
from tests.soak.callers import NO_RETRIES
from tests.soak.conftest import MakeVersion, Serve
from tests.soak.known_answers import KnownAnswers
from tests.soak.report import print_table
from tests.soak.service import Service
from tests.soak.waiting import until

JUMPS = ("+1d", "-1d", "+0")
"""One after the other; each is the difference from the true time."""
CALLERS = 16
CALLS_PER_JUMP = 200
DEADLINE_SECONDS = 1.0


@pytest.fixture
def clock(tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """The file that says how wrong the clock is, and the environment of a process with that clock."""
    package = importlib.util.find_spec("libfaketime")
    if package is None or package.origin is None:
        pytest.skip("libfaketime is not installed; `make soak` installs it")
    library = Path(package.origin).parent / "vendor/libfaketime/src/libfaketime.so.1"
    path = tmp_path / "clock"
    set_clock(path, "+0")
    ours = {
        "LD_PRELOAD": str(library),
        "FAKETIME_TIMESTAMP_FILE": str(path),
        "FAKETIME_NO_CACHE": "1",
        "DONT_FAKE_MONOTONIC": "1",
    }
    return path, os.environ | ours


def set_clock(path: Path, difference: str) -> None:
    """Replaces the file at once: libfaketime ends a process that finds it empty, as it is while it is written."""
    written = path.with_name("written")
    written.write_text(difference)
    written.replace(path)


async def test_a_clock_that_jumps_by_a_day_fails_no_call_and_delays_no_background_work(
    serve: Serve,
    clock: tuple[Path, dict[str, str]],
    models: Path,
    known: KnownAnswers,
    make_version: MakeVersion,
) -> None:
    path, environment = clock
    new = range(2, 2 + len(JUMPS))
    versions = {1: known} | {n: KnownAnswers.of_version(make_version(n), known.images) for n in new}
    flags = ("--poll-seconds", "0.2", "--canary-seconds", "0.5")
    rows = list[tuple[str, object]]()
    with serve(*flags, models=models, env=environment) as service:
        async with closed_load(service.target, versions, callers=CALLERS) as load:
            await load.more(CALLS_PER_JUMP)
            for version, jump in zip(new, JUMPS, strict=True):
                first = len(load.ended)
                set_clock(path, jump)
                await load.more(CALLS_PER_JUMP)
                late = await seconds_to_deadline_exceeded(service.target)
                await canaries_go_on(service)
                found = await seconds_to_load(
                    service, make_version(version), models / "digits" / f"{version}"
                )
                name = (
                    f"clock {jump}: calls, deadline of {DEADLINE_SECONDS:g} s after, version found after, s"
                )
                rows.append((name, f"{len(load.ended) - first}, {late:.2f}, {found:.2f}"))
                assert DEADLINE_SECONDS - 0.05 < late < DEADLINE_SECONDS + 2
        failed = service.total("glowserve_canary_checks_total", outcome="failed")
    title = f"The wall clock jumps under load, {CALLERS} callers, no call failed"
    print_table(title, [("calls", len(load.ended)), *rows])
    days = {line["time"].partition("T")[0] for line in service.log_lines()}
    assert "Traceback" not in service.log.read_text()
    assert len(days) >= 3, "the clock of the service did not jump"
    assert failed == 0


async def seconds_to_deadline_exceeded(target: str) -> float:
    """After how many seconds a call that takes longer than its deadline ends."""
    began = time.monotonic()
    async with grpc.aio.insecure_channel(target, NO_RETRIES) as channel:
        request = pb.SampleRequest(n=100_000, seed=0)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in GlowServiceStub(channel).Sample(request, timeout=DEADLINE_SECONDS):
                pass
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    return time.monotonic() - began


async def canaries_go_on(service: Service) -> None:
    """Waits for two more canaries."""
    canaries = service.total("glowserve_canary_checks_total")
    await until(lambda: service.total("glowserve_canary_checks_total") > canaries + 1, "canaries are tried")


async def seconds_to_load(service: Service, source: Path, target: Path) -> float:
    """How long it takes until a version that is copied to the repository is loaded."""

    def loads() -> float:
        return service.total("glowserve_model_loads_total", outcome="loaded")

    before, began = loads(), time.monotonic()
    await asyncio.to_thread(shutil.copytree, source, target)
    await until(lambda: loads() > before, f"version {target.name} is loaded")
    return time.monotonic() - began
