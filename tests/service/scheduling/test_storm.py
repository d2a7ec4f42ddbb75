"""A storm of callers on one batcher: they overfill the queue, cancel, and bring rows that fail."""

from __future__ import annotations

import asyncio
import time
from collections import Counter

import numpy as np
import pytest
from glowserve_service.errors import QueueFullError
from glowserve_service.scheduling.batcher import Batcher
from glowserve_service.scheduling.engine_threads import Rows

from tests.service.scheduling.batching import PATIENCE, Array, ask, batching, settle, until


@pytest.mark.parametrize("seed", range(4))
async def test_callers_that_stay_get_the_right_rows_or_the_failure_of_their_batch(seed: int) -> None:
    rng = np.random.default_rng(seed)
    durations = iter(rng.uniform(0, 0.001, 10_000).tolist())
    outcomes: Counter[str] = Counter()

    def function(rows: Array) -> Rows:
        time.sleep(next(durations))
        if (rows < 0).any():
            raise ArithmeticError
        return (rows * 2,)

    async def call(batcher: Batcher) -> None:
        rows = rng.integers(0, 1000, rng.integers(1, 25))
        if rng.random() < 0.15:
            rows[-1] = -1
        task = ask(batcher, *rows.tolist())
        if rng.random() < 0.3:
            await asyncio.sleep(float(rng.uniform(0, 0.01)))
            task.cancel()
        try:
            (doubled,) = (await task).rows
        except asyncio.CancelledError:
            outcomes["cancelled"] += 1
        except QueueFullError:
            outcomes["refused"] += 1
        except ArithmeticError:
            outcomes["failed"] += 1
        else:
            np.testing.assert_array_equal(doubled, rows * 2)
            outcomes["answered"] += 1

    async with batching(
        function, instances=2, max_queue_size=200, max_delay_seconds=[0.0, 0.001][seed % 2]
    ) as batcher:
        calls: list[asyncio.Task[None]] = []
        for _ in range(10):  # each time more rows than the queue holds: about 500
            calls += [asyncio.create_task(call(batcher)) for _ in range(40)]
            await settle()
            await until(lambda: batcher.queue_length < 20)
        await asyncio.wait_for(asyncio.gather(*calls), PATIENCE)
    assert sum(outcomes.values()) == 400
    assert min(outcomes[outcome] for outcome in ("cancelled", "refused", "failed", "answered")) > 0, outcomes
