"""Whose turn it is on the GPU: any number that use it, or one that captures."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from glowserve.runtime.gpu_turns import Turns


def test_many_use_it_at_once() -> None:
    turns, together = Turns(), threading.Barrier(4, timeout=30)

    def use() -> None:
        with turns.use():
            together.wait()

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(use) for _ in range(4)]:
            done.result(30)


def test_a_capture_waits_for_those_before_it_and_is_alone() -> None:
    turns, seen, ended = Turns(), list[str](), threading.Event()

    def use(name: str) -> None:
        with turns.use():
            seen.append(name)
            ended.wait(30)
            seen.append(f"{name} ended")

    def capture() -> None:
        with turns.capture():
            seen.append("capture")
            time.sleep(0.2)  # the later one would come in here
            seen.append("capture ended")

    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(use, "first")
        _until(lambda: turns._users == 1)
        second = pool.submit(capture)
        _until(lambda: turns._capturing)
        third = pool.submit(use, "third")
        time.sleep(0.1)
        assert seen == ["first"]
        ended.set()
        for done in (first, second, third):
            done.result(30)
    assert seen == ["first", "first ended", "capture", "capture ended", "third", "third ended"]


def test_captures_and_uses_from_many_threads_never_overlap() -> None:
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
                    time.sleep(0)
                    assert inside == ["capture"]
                    inside.remove("capture")

    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(work, number) for number in range(8)]:
            done.result(60)
    assert not inside


def test_what_fails_in_its_turn_leaves_it() -> None:
    turns = Turns()
    for turn in (turns.use, turns.capture):
        try:
            with turn():
                raise ValueError
        except ValueError:
            pass
    with turns.capture():
        pass


def _until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_a_capture_gives_up_where_a_run_hangs_and_holds_up_nobody_else() -> None:
    turns = Turns(patience=0.1)
    with turns.use():
        hangs = pytest.raises(TimeoutError, match=r"another run on the GPU has taken 0\.1 s: it hangs")
        with hangs, turns.capture():
            pass
        with turns.use():
            pass
    with turns.capture():
        pass
