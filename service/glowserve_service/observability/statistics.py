"""What one direction of a model has done since it was loaded, as the Open Inference Protocol reports it.

For the event loop's thread alone.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from glowserve_service.scheduling.batcher import BatchRun


@dataclass
class Duration:
    """How often something happened, and the seconds that it took in all."""

    count: int = 0
    seconds: float = 0.0

    def add(self, seconds: float) -> None:
        """Counts it once more."""
        self.count += 1
        self.seconds += seconds


@dataclass
class Compute:
    """The three parts of a batch's time."""

    join: Duration = field(default_factory=Duration)
    run: Duration = field(default_factory=Duration)
    split: Duration = field(default_factory=Duration)

    def add(self, run: BatchRun) -> None:
        """Counts a batch once more."""
        self.join.add(run.join_seconds)
        self.run.add(run.run_seconds)
        self.split.add(run.split_seconds)


@dataclass
class InferenceStatistics:
    """Requests, and the batches that they were in."""

    success: Duration = field(default_factory=Duration)
    """Requests that were answered, with their time in the queue."""
    fail: Duration = field(default_factory=Duration)
    """Requests that were refused, cancelled, or failed."""
    queue: Duration = field(default_factory=Duration)
    """Waiting, by request; a request that is larger than a batch waits and runs in parts, and each counts."""
    compute: Compute = field(default_factory=Compute)
    """The batch that it was in, by request."""
    images: int = 0
    """Images that have run."""
    batches: defaultdict[int, Compute] = field(default_factory=lambda: defaultdict(Compute))
    """Batches that have run, by the number of images in them."""
    last_run: float = 0.0
    """When the last batch ended, in seconds since 1970; 0 if there was none."""

    @contextmanager
    def request(self) -> Iterator[None]:
        """Counts its body as a request."""
        began = time.monotonic()
        try:
            yield
        except BaseException:
            self.fail.add(time.monotonic() - began)
            raise
        self.success.add(time.monotonic() - began)

    def add(self, run: BatchRun) -> None:
        """Counts a batch."""
        for seconds in run.waited:
            self.queue.add(seconds)
            self.compute.add(run)
        self.images += run.rows
        self.batches[run.rows].add(run)
        self.last_run = time.time()
