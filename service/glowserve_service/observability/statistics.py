"""What one direction of a model has done since it was loaded, as the Open Inference Protocol reports it.

For the event loop's thread alone.
"""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass, field

from glowserve_service.scheduling.batcher import BatchRun


@dataclass
class Duration:
    """How often something happened, and its total time in seconds."""

    count: int = 0
    seconds: float = 0.0

    def add(self, seconds: float, times: int = 1) -> None:
        """Adds occurrences of so many seconds together."""
        self.count += times
        self.seconds += seconds


@dataclass
class Compute:
    """The time of batches: joining the rows, running them, splitting the results."""

    join: Duration = field(default_factory=Duration)
    run: Duration = field(default_factory=Duration)
    split: Duration = field(default_factory=Duration)

    def add(self, run: BatchRun, times: int = 1) -> None:
        """Adds the times of a batch, so many times."""
        self.join.add(times * run.join_seconds, times)
        self.run.add(times * run.run_seconds, times)
        self.split.add(times * run.split_seconds, times)


@dataclass
class InferenceStatistics:
    """Requests, and the batches that they were in."""

    success: Duration = field(default_factory=Duration)
    """Requests that were answered, with the time from their submission to their answer."""
    fail: Duration = field(default_factory=Duration)
    """Requests that were refused, were cancelled, or failed; the time likewise."""
    queue: Duration = field(default_factory=Duration)
    """The wait for a batch: once for each request in it. A request that is larger than a batch counts in several."""
    compute: Compute = field(default_factory=Compute)
    """The time of a batch: once for each request in it."""
    images: int = 0
    """Images that have run."""
    batches: defaultdict[int, Compute] = field(default_factory=lambda: defaultdict(Compute))
    """The time of batches, by the number of images in them: once for each batch."""
    last_run: float = 0.0
    """When the last batch ended, in seconds since 1970; 0 if there was none."""

    def request(self) -> CountedRequest:
        """`with statistics.request()` counts its body as a request."""
        return CountedRequest(self)

    def add(self, run: BatchRun) -> None:
        """Counts a batch that has run."""
        requests = len(run.waited)
        self.queue.add(sum(run.waited), requests)
        self.compute.add(run, requests)
        self.images += run.rows
        self.batches[run.rows].add(run)
        self.last_run = time.time()


class CountedRequest:
    """Counts the body of `with` as a request. Many wait at a time: a generator would take ten times the memory."""

    __slots__ = ("_began", "_statistics")

    def __init__(self, statistics: InferenceStatistics) -> None:
        self._statistics = statistics

    def __enter__(self) -> None:
        self._began = time.monotonic()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        outcome = self._statistics.fail if kind else self._statistics.success
        outcome.add(time.monotonic() - self._began)
