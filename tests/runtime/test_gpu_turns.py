"""The lock for the GPU: any number of threads use it at once, or one captures."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from glowserve.runtime.gpu_turns import Turns
from tests.service.wire import wait_for


def waiting(turns: Turns) -> int:
    """How many threads wait for the lock."""
    return len(turns._condition._waiters)  # type: ignore[attr-defined]


def test_many_threads_use_it_at_once() -> None:
    turns, together = Turns(), threading.Barrier(4, timeout=60)

    def use() -> None:
        with turns.use():
            together.wait()

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(use) for _ in range(4)]:
            done.result(60)


def test_a_capture_waits_for_earlier_users_and_keeps_later_users_waiting() -> None:
    turns, events, may_end = Turns(), list[str](), threading.Event()

    def use(name: str) -> None:
        with turns.use():
            events.append(name)
            assert may_end.wait(60)
            events.append(f"{name} ended")

    def capture() -> None:
        with turns.capture():
            events.append("capture")
            wait_for(lambda: waiting(turns) == 1)  # the later user
            events.append("capture ended")

    with ThreadPoolExecutor(3) as pool:
        earlier = pool.submit(use, "earlier")
        wait_for(lambda: turns._users == 1)
        captured = pool.submit(capture)
        wait_for(lambda: waiting(turns) == 1)
        later = pool.submit(use, "later")
        wait_for(lambda: waiting(turns) == 2)
        assert events == ["earlier"]
        may_end.set()
        for done in (earlier, captured, later):
            done.result(60)
    assert events == ["earlier", "earlier ended", "capture", "capture ended", "later", "later ended"]


def test_captures_and_uses_of_many_threads_never_overlap() -> None:
    turns, inside = Turns(), list[str]()

    def work(number: int) -> None:
        for i in range(200):
            if (number + i) % 10:
                with turns.use():
                    inside.append("use")
                    assert "capture" not in inside
                    inside.remove("use")
            else:
                with turns.capture():
                    assert not inside
                    inside.append("capture")
                    assert inside == ["capture"]
                    inside.remove("capture")

    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(work, number) for number in range(8)]:
            done.result(120)
    assert not inside


def test_an_error_releases_the_lock() -> None:
    turns = Turns()
    for lock in (turns.use, turns.capture):
        with pytest.raises(ValueError, match="it fails"), lock():
            raise ValueError("it fails")
    with turns.capture():
        pass


def test_a_capture_gives_up_on_a_run_that_hangs_and_keeps_nobody_waiting() -> None:
    turns = Turns(patience=0.1)
    with turns.use():
        hangs = pytest.raises(TimeoutError, match=r"another run on the GPU has taken 0\.1 s: it hangs")
        with hangs, turns.capture():
            pass
        with turns.use():
            pass
    with turns.capture():
        pass
