"""Many calls of all kinds: every answer is the known one, every call is counted, and nothing grows.

`$SOAK_CALLS` says how many; a reading below 20,000 says little about memory. Calls that are given up are a test of
their own: each leaks an operation of gRPC's (grpc/grpc#43360), whoever serves it.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor

import numpy as np

from tests.soak.callers import AWAITED, GIVEN_UP, Known, Mixture, make_calls
from tests.soak.conftest import Serve, Service, Sight, table, total, wait_for

CALLS = int(os.environ.get("SOAK_CALLS", "200000"))
PROCESSES = 4
CONCURRENCY = 16  # in each
MOST_GROWTH = 0.02
# Bytes of a call that is given up. gRPC leaks 80 for an operation, which take 96 of the heap; a call may fail in two.
MOST_LEAKED = 256
NOT_AWAITED = ("GIVEN_UP", "DEADLINE_EXCEEDED")
# What the server may say of a call whose caller has stopped listening.
ENDINGS = ("OK", "CANCELLED", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED")


def test_many_calls_are_answered_right_and_counted_and_leave_nothing_behind(
    serve: Serve, known: Known
) -> None:
    with serve() as service:
        sights = make_and_check(service, known, AWAITED, CALLS)
    tenths = rss_by_tenths(sights)
    growth = tenths[-1] / tenths[1] - 1  # the first tenth is to warm up
    table("their memory", [("growth of RSS, second to last tenth of the calls", f"{100 * growth:+.2f} %")])
    assert growth < MOST_GROWTH


def test_many_calls_that_are_given_up_are_counted_and_leave_no_more_behind_than_in_grpc(
    serve: Serve, known: Known
) -> None:
    calls = CALLS // 2
    with serve() as service:
        sights = make_and_check(service, known, GIVEN_UP, calls)
    tenths = rss_by_tenths(sights)
    leaked = (tenths[-1] - tenths[1]) / (0.8 * calls)
    table("their memory", [("growth of RSS, second to last tenth, bytes a call", f"{leaked:.0f}")])
    assert leaked < MOST_LEAKED


def make_and_check(service: Service, known: Known, mixture: Mixture, calls: int) -> list[Sight]:
    """Makes calls from several processes, and checks all but memory; returns what was seen of the service meanwhile."""
    before = service.seen()
    with service.watched() as sights:
        began = time.monotonic()
        with ProcessPoolExecutor(PROCESSES, multiprocessing.get_context("spawn")) as pool:
            parts = [
                pool.submit(
                    make_calls, service.target, known, mixture, f"{i}", calls // PROCESSES, CONCURRENCY
                )
                for i in range(PROCESSES)
            ]
            reports = [part.result() for part in parts]
        seconds = time.monotonic() - began
    wait_for(lambda: service.total("glowserve_requests_in_flight") == 0)
    wait_for(lambda: service.seen().files <= before.files)
    after, metrics = service.seen(), service.metrics()
    counted = total(metrics, "glowserve_requests_total")
    logged = service.calls_in_log()
    text = service.log.read_text()
    made = {request_id: outcome for report in reports for request_id, outcome in report.codes.items()}
    wrong = [sentence for report in reports for sentence in report.wrong]
    codes = Counter(code for _, code in made.values())
    table(
        f"{len(made)} calls of {PROCESSES} processes, {CONCURRENCY} at a time in each",
        [
            ("calls a second", f"{len(made) / seconds:.0f}"),
            ("seconds", f"{seconds:.0f}"),
            ("wrong answers", len(wrong)),
            ("as their callers saw them", ", ".join(f"{code} {n}" for code, n in codes.most_common())),
            ("counted by the server", f"{counted:.0f}"),
            ("given up before they arrived", len(made) - len(logged)),
            ("RSS before, at the end, most, MiB", mib(before.rss, after.rss, max(s.rss for s in sights))),
            ("RSS by tenth of the calls, MiB", mib(*rss_by_tenths(sights))),
            (
                "threads before, most, after",
                f"{before.threads}, {max(s.threads for s in sights)}, {after.threads}",
            ),
            (
                "open files before, most, after",
                f"{before.files}, {max(s.files for s in sights)}, {after.files}",
            ),
        ],
    )
    assert not wrong, wrong[:20]
    assert "Traceback" not in text
    assert "INTERNAL" not in {line["code"] for line in logged}
    # Every call that arrived is in the log once, and counted once, under its code.
    ids = {line["request_id"]: line["code"] for line in logged}
    assert len(ids) == len(logged) == counted
    assert ids.keys() <= made.keys()
    for method, code in {(line["method"], line["code"]) for line in logged}:
        lines = sum(line["method"] == method and line["code"] == code for line in logged)
        assert total(metrics, "glowserve_requests_total", method=method, code=code) == lines
    # Its code is the one that its caller was told, unless that had stopped listening, perhaps before it arrived.
    for request_id, (kind, code) in made.items():
        if code not in NOT_AWAITED:
            assert ids.get(request_id) == code, (request_id, kind, code)
        elif kind == "cancelled_stream":
            assert ids.get(request_id) in ("OK", "CANCELLED"), (request_id, kind)
        else:
            assert ids.get(request_id, "") in ("", *ENDINGS), (request_id, kind, code)
    assert total(metrics, "glowserve_queue_length") == 0
    assert total(metrics, "glowserve_requests_in_flight") == 0
    assert after.threads <= max(s.threads for s in sights[: len(sights) // 2])
    return sights


def rss_by_tenths(sights: Sequence[Sight]) -> list[float]:
    """Bytes, the median while each tenth of the calls ended."""
    end = sights[-1].calls
    tenths = [[sight.rss for sight in sights if i <= 10 * sight.calls / end < i + 1] for i in range(10)]
    return [float(np.median(tenth)) for tenth in tenths]


def mib(*sizes: float) -> str:
    return ", ".join(f"{size / 2**20:.1f}" for size in sizes)
