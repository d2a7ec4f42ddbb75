"""Threads that may hang: the end of the process does not wait for them, unlike for those of a ThreadPoolExecutor."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")


def call_in_daemon_thread(function: Callable[..., T], *args: Any) -> Future[T]:
    """Calls a function in a thread of its own, and returns its result to come."""
    future: Future[T] = Future()
    future.set_running_or_notify_cancel()

    def call() -> None:
        try:
            future.set_result(function(*args))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=call, name=getattr(function, "__name__", "call"), daemon=True).start()
    return future
