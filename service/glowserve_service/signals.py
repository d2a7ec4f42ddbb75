"""SIGTERM, SIGINT and SIGHUP: the first asks the service to stop, another SIGTERM or SIGINT ends the process.

This file imports little, so that `prepare` can be called before the imports that take time.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType

_STOP = (signal.SIGTERM, signal.SIGINT)
_STDERR = 2


def prepare() -> None:
    """To be called first: a signal that arrives before `on_stop` ends the process.

    Only the first process of a container needs that: Linux gives it no signal for which it has no handler.
    """
    if os.getpid() == 1:
        for number in _STOP:
            signal.signal(number, _end)


def on_stop(ask: Callable[[], object], seconds: float) -> None:
    """Calls a function on the first signal. Another SIGTERM or SIGINT ends the process at once, and so does the time.

    A terminal that closes sends SIGHUP, once or twice; under `nohup` it is ignored, and stays so.

    The process ends even if the main thread or the interpreter hangs: then faulthandler writes the tracebacks of all
    threads to standard error, and the exit code is 1. A second later it ends even if that write waits for a reader.

    Args:
        ask: asks for a graceful stop. Called in the main thread, between any two instructions.
        seconds: how long the process may go on after the first signal.
    """

    def first(_number: int, _frame: FrameType | None) -> None:
        faulthandler.dump_traceback_later(seconds, exit=True, file=_STDERR)
        threading.Thread(target=_end_after, args=(seconds + 1,), daemon=True).start()
        for each in _STOP:
            # Linux needs no help of this process for the default, ending it, but ignores it for process 1.
            signal.signal(each, _end if os.getpid() == 1 else signal.SIG_DFL)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        ask()

    hangup = () if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else (signal.SIGHUP,)
    for number in (*_STOP, *hangup):
        signal.signal(number, first)


def _end_after(seconds: float) -> None:
    time.sleep(seconds)
    os._exit(1)


def _end(number: int, _frame: FrameType | None) -> None:
    os._exit(128 + number)
