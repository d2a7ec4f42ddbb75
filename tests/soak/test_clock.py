"""The wall clock jumps by a day, forth and back, under load: nobody notices but the log.

libfaketime, which `make soak` installs, gives the service a clock of its own. The monotonic clock is left alone, as a
real jump leaves it.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import random
import shutil
import time
from pathlib import Path

import grpc
import pytest

from glowserve.v1 import glow_service_pb2 as pb
from glowserve.v1.glow_service_pb2_grpc import GlowServiceStub
from tests.soak.callers import NO_RETRIES, WELL_BEHAVED, Caller, Known
from tests.soak.conftest import MakeVersion, Serve, Service, known_of, table, total, wait_for

# One after the other, from the true time.
JUMPS = ("+1d", "-1d", "+0")
CALLERS = 16
SECONDS = 3.0
DEADLINE = 1.0


@pytest.fixture
def clock(tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """A file that says by how much the clock is wrong, and the environment in which it is."""
    package = importlib.util.find_spec("libfaketime")
    if package is None or package.origin is None:
        pytest.skip("libfaketime is not installed; `make soak` installs it")
    library = Path(package.origin).parent / "vendor/libfaketime/src/libfaketime.so.1"
    path = tmp_path / "clock"
    path.write_text("+0")
    ours = {
        "LD_PRELOAD": str(library),
        "FAKETIME_TIMESTAMP_FILE": str(path),
        "FAKETIME_NO_CACHE": "1",
        "DONT_FAKE_MONOTONIC": "1",
    }
    return path, os.environ | ours


def test_a_clock_that_jumps_by_a_day_disturbs_no_call(
    serve: Serve,
    clock: tuple[Path, dict[str, str]],
    repository: Path,
    tmp_path: Path,
    known: Known,
    make_version: MakeVersion,
) -> None:
    path, environment = clock
    folder = tmp_path / "models" / "digits"
    shutil.copytree(repository / "digits" / "1", folder / "1")
    versions = {1: known} | {n: known_of(make_version(n), known.images) for n in range(2, 2 + len(JUMPS))}
    flags = ("--poll-seconds", "0.2", "--canary-seconds", "0.5")
    rows = list[tuple[str, object]]()

    async def jump_often(service: Service) -> int:
        count, running = 0, True

        async def work(caller: Caller, number: int) -> None:
            nonlocal count
            luck = random.Random(number)
            while running:
                assert await caller.call(luck.choice(WELL_BEHAVED), luck) == "OK"
                count += 1

        async with (
            grpc.aio.insecure_channel(service.target, NO_RETRIES) as channel,
            asyncio.TaskGroup() as group,
        ):
            caller = Caller(channel, versions)
            for number in range(CALLERS):
                group.create_task(work(caller, number))
            await asyncio.sleep(SECONDS)
            for version, jump in enumerate(JUMPS, 2):
                calls = count
                await asyncio.to_thread(path.write_text, jump)
                await asyncio.sleep(SECONDS)
                late = await overdue(GlowServiceStub(channel))
                # What happens by itself goes on: canaries, and the look for new versions.
                canaries = service.total("glowserve_canary_checks_total")
                await asyncio.to_thread(
                    wait_for,
                    lambda least=canaries: service.total("glowserve_canary_checks_total") > least + 1,
                )
                began = time.monotonic()
                await asyncio.to_thread(shutil.copytree, make_version(version), folder / f"{version}")
                await asyncio.to_thread(wait_for, lambda version=version: loads(service) == version)
                found = time.monotonic() - began
                rows.append(
                    (
                        f"clock {jump}: calls, failed, deadline of {DEADLINE:g} s told after, version found after, s",
                        f"{count - calls}, 0, {late:.2f}, {found:.2f}",
                    )
                )
                assert DEADLINE - 0.05 < late < DEADLINE + 2
            running = False
        return count

    with serve(*flags, models=tmp_path / "models", env=environment) as service:
        calls = asyncio.run(jump_often(service))
        failed = total(service.metrics(), "glowserve_canary_checks_total", outcome="failed")
        days = {line["time"].partition("T")[0] for line in service.log_lines()}
        text = service.log.read_text()
    table(f"The wall clock jumps under load, {CALLERS} callers", [("calls", calls), *rows])
    assert "Traceback" not in text
    assert len(days) >= 3  # or it did not jump
    assert failed == 0


def loads(service: Service) -> float:
    return service.total("glowserve_model_loads_total")


async def overdue(stub: GlowServiceStub) -> float:
    """After how many seconds a call that cannot be done in time is told so."""
    began = time.monotonic()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in stub.Sample(pb.SampleRequest(n=100_000, seed=0), timeout=DEADLINE):
            pass
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    return time.monotonic() - began
