"""Many calls of several kinds, made by one process."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field

import grpc

from tests.soak.callers import OWN_CONNECTION, SERVER_STOPPED, Caller
from tests.soak.known_answers import KnownAnswers, WrongAnswerError

Mixture = dict[str, int]
"""Relative frequencies of the kinds of calls."""

AWAITED: Mixture = {
    "score": 34,
    "score_png": 6,
    "sample": 13,
    "encode": 9,
    "decode": 12,
    "list": 11,
    "infer": 11,
    "malformed": 4,
}
"""Callers wait for each answer."""

ABANDONED: Mixture = {"cancelled": 4, "cancelled_stream": 3, "short_deadline": 4}
"""Callers may abandon each call before its answer."""


@dataclass
class Report:
    """How the calls of one process ended."""

    codes: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Kind and code, by request id."""
    wrong: list[str] = field(default_factory=list)
    """A sentence about each wrong answer."""


def make_calls(
    target: str, known: KnownAnswers, mixture: Mixture, name: str, n: int, concurrency: int
) -> Report:
    """Makes n calls, `concurrency` at a time, with the request ids NAME-0, NAME-1 and so on."""
    return asyncio.run(_make_calls(target, known, mixture, name, n, concurrency))


async def _make_calls(
    target: str, known: KnownAnswers, mixture: Mixture, name: str, n: int, concurrency: int
) -> Report:
    report, numbers = Report(), iter(range(n))

    async def work(caller: Caller) -> None:
        for number in numbers:
            await _make_call(caller, mixture, f"{name}-{number}", report)

    async with grpc.aio.insecure_channel(target, OWN_CONNECTION) as channel:
        caller = Caller(channel, {known.version: known})
        await asyncio.gather(*(work(caller) for _ in range(concurrency)))
    return report


async def _make_call(caller: Caller, mixture: Mixture, request_id: str, report: Report) -> None:
    rng = random.Random(request_id)
    (kind,) = rng.choices(list(mixture), list(mixture.values()))
    try:
        code = (await caller.call(kind, rng, request_id)).code
        if code in SERVER_STOPPED:
            report.wrong.append(f"{request_id}: {kind} ended with {code}")
    except WrongAnswerError as error:
        code = "WRONG"
        report.wrong.append(f"{request_id}: {error}")
    report.codes[request_id] = kind, code
