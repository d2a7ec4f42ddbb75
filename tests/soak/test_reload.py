"""New versions arrive under load: every call is answered by one version, and answer times stay as they are."""

from __future__ import annotations

import asyncio
import shutil
import time
from pathlib import Path

import numpy as np

from tests.soak.background_load import EndedCall, closed_load, open_load
from tests.soak.conftest import MakeVersion, Serve
from tests.soak.known_answers import KnownAnswers
from tests.soak.listing import until_served
from tests.soak.report import print_table

SWAPS = 8
CALLERS = 32
"""They saturate the service."""
SATURATED_SECONDS = 3.0
STEADY_SECONDS = 3.0
"""Between two swaps."""
AFTER_SECONDS = 0.1
"""Calls that begin so long after a swap still count as calls during it: they are the new version's first ones."""

Window = tuple[float, float]
"""Begin and end, on the clock of `time.monotonic`."""


async def test_versions_are_swapped_under_load_and_no_call_fails(
    serve: Serve, models: Path, known: KnownAnswers, make_version: MakeVersion
) -> None:
    new = {n: make_version(n) for n in range(2, 2 + SWAPS)}
    versions = {1: known} | {n: KnownAnswers.of_version(path, known.images) for n, path in new.items()}
    with serve("--poll-seconds", "0.2", "--canary-seconds", "1", models=models) as service:
        rate = await saturated_rate(service.target, versions) / 2
        windows = list[Window]()
        async with open_load(service.target, versions, rate) as load:
            await load.more(50)
            load.ended.clear()  # the first calls opened the connection
            for number, path in new.items():
                windows.append(await swap(service.target, path, models / "digits", number))
        loaded = service.total("glowserve_model_loads_total")
        log = service.log.read_text()
    assert print_swaps(load.ended, windows, rate) > 100
    assert "Traceback" not in log
    assert loaded == 1 + SWAPS


async def saturated_rate(target: str, versions: dict[int, KnownAnswers]) -> float:
    """How many calls a second the service answers at most."""
    async with closed_load(target, versions, callers=CALLERS) as load:
        await load.more(10 * CALLERS)
        first = len(load.ended)
        await asyncio.sleep(SATURATED_SECONDS)
        return (len(load.ended) - first) / SATURATED_SECONDS


async def swap(target: str, version: Path, folder: Path, number: int) -> Window:
    """Lets a version appear in a model's folder; returns when it appeared and when it was served."""
    staging = folder / f".staging-{number}"
    await asyncio.to_thread(shutil.copytree, version, staging)
    await asyncio.sleep(STEADY_SECONDS)
    began = time.monotonic()
    staging.rename(folder / f"{number}")
    await until_served(target, number)
    return began, time.monotonic()


def print_swaps(calls: list[EndedCall], windows: list[Window], rate: float) -> int:
    """Prints a table, and returns the number of calls during swaps."""
    spans = [(began, ended + AFTER_SECONDS) for began, ended in windows]
    in_swap = np.array([any(began <= call.began <= ended for began, ended in spans) for call in calls])
    milliseconds = 1000 * np.array([call.seconds for call in calls])
    steady, swapping = milliseconds[~in_swap], milliseconds[in_swap]
    steady_p99, swapping_p99 = np.quantile(steady, 0.99), np.quantile(swapping, 0.99)
    print_table(
        f"{len(windows)} versions are swapped, {rate:.0f} calls a second (half of the most that are answered)",
        [
            ("calls, of them during swaps, failed", f"{len(calls)}, {len(swapping)}, 0"),
            ("seconds from the folder's appearance until it is served", f"{np.mean(np.diff(windows)):.2f}"),
            ("p99 between swaps, ms", f"{steady_p99:.1f}"),
            ("p99 during swaps, ms", f"{swapping_p99:.1f}"),
            ("ratio (the bound is 2, on a quiet machine)", f"{swapping_p99 / steady_p99:.2f}"),
            ("longest between swaps, during swaps, ms", f"{steady.max():.1f}, {swapping.max():.1f}"),
        ],
    )
    return len(swapping)
