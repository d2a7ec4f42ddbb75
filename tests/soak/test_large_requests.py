"""Callers that send too much get an error; the service stays small, and others are answered meanwhile."""

from __future__ import annotations

import multiprocessing
import os
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.soak.conftest import Serve
from tests.soak.large_requests import FORMS, Form, call_again_and_again, call_with
from tests.soak.report import print_table
from tests.soak.service import Service
from tests.soak.waiting import wait_until

MESSAGE_MIB = 60
BUDGET_MIB = 512
LONG_CALLS, LONG_MIB = 40, 50
MAX_SECONDS = 30.0
"""The longest that a good caller's Score and health check may take, on a machine that copies gigabytes meanwhile."""
MAX_FACTOR = 5.0
"""The most memory, in budgets. What has arrived in gRPC when the event loop is busy cannot be refused yet."""
LONG = Form("/glowserve.v1.GlowService/Score", os.urandom(1000), (1, 1, 2))
"""A picture that cannot be read."""


@dataclass(frozen=True)
class Result:
    """What happened during an attack."""

    codes: Counter[str]
    longest_seconds: float
    """Of a good caller's Score and health check together."""
    grown_mib: float
    """The most memory of the service, less what it took before."""


def attack(service: Service, form: Form, mebibytes: float, calls: int, timeout: float = 60.0) -> Result:
    """Makes long calls at once, from two processes, beside a good caller, and waits until nothing is held."""
    context = multiprocessing.get_context("spawn")
    outcomes, seconds = context.Queue(), context.Queue()
    stop = context.Event()
    good = context.Process(target=call_again_and_again, args=(service.target, seconds, stop))
    good.start()
    wait_until(lambda: service.total("glowserve_requests_total", code="OK") > 0, "the good caller calls")
    before = memory_mib(service, "VmRSS")
    request = form.request(mebibytes)
    bad = [
        context.Process(
            target=call_with, args=(service.target, form.path, request, calls // 2, timeout, outcomes)
        )
        for _ in range(2)
    ]
    for process in bad:
        process.start()
    codes = sum((outcomes.get(timeout=300) for _ in bad), Counter[str]())
    stop.set()
    longest = seconds.get(timeout=60)
    for process in (good, *bad):
        process.join()
    wait_until(lambda: service.total("glowserve_received_bytes") == 0, "nothing is held")
    wait_until(lambda: service.total("glowserve_requests_in_flight") == 0, "no call is in flight")
    return Result(codes, longest, memory_mib(service, "VmHWM") - before)


def memory_mib(service: Service, name: str) -> float:
    """A size in the status of the service's process: VmRSS, or VmHWM, the largest so far."""
    status = Path(f"/proc/{service.process.pid}/status").read_text()
    return int(re.findall(rf"{name}:\s+(\d+)", status)[0]) / 1024


def print_result(title: str, result: Result) -> None:
    codes = ", ".join(f"{n} {code}" for code, n in sorted(result.codes.items()))
    print_table(
        title,
        [
            ("statuses", codes),
            ("longest Score and health check of a good caller, s", f"{result.longest_seconds:.2f}"),
            ("growth of the service's memory, MiB", f"{result.grown_mib:.0f}"),
        ],
    )


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_a_long_request_of_many_parts_is_refused(serve: Serve, form: Form) -> None:
    with serve() as service:
        result = attack(service, form, MESSAGE_MIB, 2)
    print_result(f"2 requests of {MESSAGE_MIB} MiB of {form.part[:8]!r} to {form.path}", result)
    assert set(result.codes) == {"INVALID_ARGUMENT"}
    assert result.grown_mib < 10 * MESSAGE_MIB
    assert result.longest_seconds < MAX_SECONDS


@pytest.mark.parametrize("timeout", [60.0, 2.0], ids=["patient", "given up after 2 s"])
def test_many_long_requests_at_once_stay_near_the_budget(serve: Serve, timeout: float) -> None:
    with serve("--max-received-mib", str(BUDGET_MIB)) as service:
        result = attack(service, LONG, LONG_MIB, LONG_CALLS, timeout)
        log = service.log.read_text()
    print_result(
        f"{LONG_CALLS} Scores of {LONG_MIB} MiB, timeout {timeout:g} s, budget {BUDGET_MIB} MiB", result
    )
    assert set(result.codes) <= {"INVALID_ARGUMENT", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED"}
    assert result.grown_mib < MAX_FACTOR * BUDGET_MIB
    assert result.longest_seconds < MAX_SECONDS
    assert "Traceback" not in log
