"""What a call knows: its id, its ticket, the models that it used, and the seconds in each stage."""

from __future__ import annotations

import math
import time

import pytest
from glowserve_service.front.call import Call, request_id
from glowserve_service.scheduling.ticket import Ticket


class Span:
    """In place of a span: keeps the stages."""

    def __init__(self) -> None:
        self.stages: list[tuple[str, float, float]] = []

    def stage(self, name: str, seconds: float, ago: float) -> None:
        self.stages.append((name, seconds, ago))


def test_the_first_ticket_of_a_call_has_its_deadline_and_may_be_refused() -> None:
    assert Call("Score", "1").ticket == Ticket(deadline=math.inf, first=True, long=False, gate=None)
    assert Call("Score", "1", deadline=17.0).ticket == Ticket(deadline=17.0)


def test_a_call_names_its_model_and_version_unless_it_used_several() -> None:
    call = Call("ModelStreamInfer", "1")
    assert (call.model, call.version) == ("", 0)
    call.models.add(("digits", 3))
    assert (call.model, call.version) == ("digits", 3)
    call.models.add(("digits", 4))
    assert (call.model, call.version) == ("digits", 0)
    call.models.add(("faces", 3))
    assert (call.model, call.version) == ("", 0)


def test_the_seconds_of_a_stage_are_summed_and_each_is_a_span() -> None:
    call, now = Call("Score", "1"), time.monotonic()
    span = call.span = Span()
    for began, ended in ((now - 5, now - 4), (now - 4, now - 1)):
        call.record("queue", began, ended)
    assert call.seconds == {"queue": pytest.approx(4)}
    assert [(name, seconds) for name, seconds, _ in span.stages] == [
        ("queue", pytest.approx(1)),
        ("queue", pytest.approx(3)),
    ]
    first, second = (ago for _, _, ago in span.stages)
    assert first >= 4
    assert second >= 1


def test_the_time_of_a_block_is_recorded_even_if_it_fails() -> None:
    call = Call("Score", "1")

    def fail() -> None:
        with call.timed("preparation"):
            time.sleep(0.01)
            raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011
        fail()
    assert call.seconds["preparation"] >= 0.01


@pytest.mark.parametrize("given", ["order-17/a", "a" * 128, "A.b_c:d/e+f=g@h-1"])
def test_a_request_id_of_the_caller_is_kept(given: str) -> None:
    assert request_id(given) == given


@pytest.mark.parametrize("given", [None, b"bytes", "", "two words", "a" * 129, 'quote"', "line\n", "é"])
def test_another_request_id_is_replaced_by_a_new_one(given: object) -> None:
    ids = {request_id(given) for _ in range(3)}
    assert len(ids) == 3
    assert all(len(each) == 32 and int(each, 16) >= 0 for each in ids)
