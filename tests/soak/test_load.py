"""Many calls of all kinds: every answer is correct, every call is counted, and no resource grows.

$SOAK_CALLS is the number of calls; below 20,000 for each process of the service, the growth of memory says little: the
allocator's pools still fill. Abandoned calls have a test of their own: each leaks an operation of gRPC's
(grpc/grpc#43360), in any server.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from tests.soak.conftest import Serve
from tests.soak.known_answers import KnownAnswers
from tests.soak.mixtures import ABANDONED, AWAITED, Mixture, Report, make_calls
from tests.soak.report import mebibytes, print_table
from tests.soak.service import Service, Snapshot, total
from tests.soak.waiting import wait_until

CALLS = int(os.environ.get("SOAK_CALLS", "200000"))
PROCESSES = 4
CONCURRENCY = 16
"""Calls at a time in each process."""
MAX_GROWTH = 0.02
MAX_LEAK_BYTES = 256
"""Per abandoned call. gRPC leaks 80 bytes per failed operation, which take 96 of the heap; a call may have two."""

NOT_AWAITED = ("ABANDONED", "DEADLINE_EXCEEDED")
"""Codes of calls whose caller has stopped waiting."""
CODES_OF_NOT_AWAITED = ("OK", "CANCELLED", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED")
"""Codes with which the server may log them."""


@dataclass(frozen=True)
class Run:
    """Calls that were made, and the service before, while and after they were."""

    made: dict[str, tuple[str, str]]
    """Kind and code, by request id, as the callers saw them."""
    wrong: list[str]
    seconds: float
    before: Snapshot
    during: list[Snapshot]
    after: Snapshot
    metrics: dict[str, float]
    logged: list[dict[str, Any]]

    @property
    def rss_by_tenths(self) -> list[float]:
        """The median RSS while each tenth of the calls ended, in bytes."""
        end = self.during[-1].ended_calls
        tenths = [
            [each.rss for each in self.during if i <= 10 * each.ended_calls / end < i + 1] for i in range(10)
        ]
        return [float(np.median(tenth)) for tenth in tenths]

    @property
    def rss_growth(self) -> tuple[float, float]:
        """RSS in the second tenth, in which the service is warm, and in the last one."""
        return self.rss_by_tenths[1], self.rss_by_tenths[-1]


def test_awaited_calls_are_answered_correctly_and_counted_once_and_leak_no_memory(
    serve: Serve, known: KnownAnswers
) -> None:
    with serve() as service:
        run = make_and_check_calls(service, known, AWAITED, CALLS)
    warm, last = run.rss_growth
    growth = last / warm - 1
    print_table("Memory", [("growth of RSS, second to last tenth of the calls", f"{100 * growth:+.2f} %")])
    assert growth < MAX_GROWTH


def test_abandoned_calls_are_counted_once_and_leak_no_more_than_grpc_does(
    serve: Serve, known: KnownAnswers
) -> None:
    calls = CALLS // 2
    with serve() as service:
        run = make_and_check_calls(service, known, ABANDONED, calls)
    warm, last = run.rss_growth
    leak = (last - warm) / (0.8 * calls)
    print_table("Memory", [("growth of RSS, second to last tenth, bytes a call", f"{leak:.0f}")])
    assert leak < MAX_LEAK_BYTES


def make_and_check_calls(service: Service, known: KnownAnswers, mixture: Mixture, calls: int) -> Run:
    """Makes calls from several processes, and checks everything but memory."""
    run = make(service, known, mixture, calls)
    print_run(run)
    assert not run.wrong, run.wrong[:20]
    assert "Traceback" not in service.log.read_text()
    check_counts(run)
    check_codes(run)
    assert total(run.metrics, "glowserve_queue_length") == 0
    assert total(run.metrics, "glowserve_requests_in_flight") == 0
    assert run.after.threads <= max(each.threads for each in run.during[: len(run.during) // 2])
    return run


def make(service: Service, known: KnownAnswers, mixture: Mixture, calls: int) -> Run:
    before = service.snapshot()
    with service.monitored() as during:
        began = time.monotonic()
        reports = make_in_processes(service.target, known, mixture, calls)
        seconds = time.monotonic() - began
    wait_until(lambda: service.total("glowserve_requests_in_flight") == 0, "no call is in flight")
    wait_until(lambda: service.snapshot().files <= before.files, "no more files are open than before")
    return Run(
        made={request_id: ended for report in reports for request_id, ended in report.codes.items()},
        wrong=[sentence for report in reports for sentence in report.wrong],
        seconds=seconds,
        before=before,
        during=during,
        after=service.snapshot(),
        metrics=service.metrics(),
        logged=service.call_log(),
    )


def make_in_processes(target: str, known: KnownAnswers, mixture: Mixture, calls: int) -> list[Report]:
    with ProcessPoolExecutor(PROCESSES, multiprocessing.get_context("spawn")) as pool:
        parts = [
            pool.submit(make_calls, target, known, mixture, f"{i}", calls // PROCESSES, CONCURRENCY)
            for i in range(PROCESSES)
        ]
        return [part.result() for part in parts]


def print_run(run: Run) -> None:
    codes = Counter(code for _, code in run.made.values())
    counted = total(run.metrics, "glowserve_requests_total")
    before, after, during = run.before, run.after, run.during
    print_table(
        f"{len(run.made)} calls of {PROCESSES} processes, {CONCURRENCY} at a time in each",
        [
            ("calls a second", f"{len(run.made) / run.seconds:.0f}"),
            ("seconds", f"{run.seconds:.0f}"),
            ("wrong answers", len(run.wrong)),
            ("codes that callers saw", ", ".join(f"{code} {n}" for code, n in codes.most_common())),
            ("calls that the server counted", f"{counted:.0f}"),
            ("calls abandoned before they arrived", len(run.made) - len(run.logged)),
            ("RSS before, after, at most, MiB", mebibytes(before.rss, after.rss, max(s.rss for s in during))),
            ("RSS by tenth of the calls, MiB", mebibytes(*run.rss_by_tenths)),
            (
                "threads before, at most, after",
                f"{before.threads}, {max(s.threads for s in during)}, {after.threads}",
            ),
            (
                "open files before, at most, after",
                f"{before.files}, {max(s.files for s in during)}, {after.files}",
            ),
        ],
    )


def check_counts(run: Run) -> None:
    """Every call that arrived is in the log once, and is counted once, under its method and code."""
    logged = Counter((line["method"], line["code"]) for line in run.logged)
    ids = {line["request_id"] for line in run.logged}
    assert len(ids) == len(run.logged) == total(run.metrics, "glowserve_requests_total")
    assert ids <= run.made.keys()
    assert "INTERNAL" not in {code for _, code in logged}
    for (method, code), lines in logged.items():
        assert total(run.metrics, "glowserve_requests_total", method=method, code=code) == lines


def check_codes(run: Run) -> None:
    """A caller that waits sees the code that is in the log. Calls of others may have ended before they arrived."""
    logged = {line["request_id"]: line["code"] for line in run.logged}
    for request_id, (kind, code) in run.made.items():
        if code not in NOT_AWAITED:
            assert logged.get(request_id) == code, (request_id, kind, code)
        elif kind == "cancelled_stream":
            assert logged.get(request_id) in ("OK", "CANCELLED"), (request_id, kind)
        else:
            assert logged.get(request_id, "") in ("", *CODES_OF_NOT_AWAITED), (request_id, kind, code)
