"""Serves the pages of a service: in a thread of this process, or as `glowserve ui`."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

import glowserve
from glowserve.ui.server import serve
from tests.servers import SECONDS


@contextmanager
def serve_pages(target: str, **settings: Any) -> Iterator[str]:
    """The pages in a thread of this process; yields their URL.

    Args:
        target: HOST:PORT of the service.
        settings: arguments of AsyncClient.
    """
    started: Future[str] = Future()
    loop = asyncio.new_event_loop()

    async def run() -> None:
        async with glowserve.AsyncClient(target, **settings) as client:
            await serve(client, target, "127.0.0.1", 0, started.set_result)

    task = loop.create_task(run())

    def work() -> None:
        try:
            loop.run_until_complete(task)
        except asyncio.CancelledError:
            pass
        finally:
            loop.run_until_complete(loop.shutdown_default_executor())
            loop.close()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield started.result(SECONDS)
    finally:
        loop.call_soon_threadsafe(task.cancel)
        thread.join(SECONDS)
        assert not thread.is_alive(), "the pages did not stop"


@contextmanager
def start_pages(*flags: str, **options: Any) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`glowserve ui` as a process; yields it and the URL of the pages, and kills it at the end at the latest.

    Args:
        flags: of `glowserve ui`.
        options: of subprocess.Popen.
    """
    command = [sys.executable, "-m", "glowserve", "ui", "--port", "0", *flags]
    kept = {name: text for name, text in os.environ.items() if not name.startswith("GLOWSERVE_")}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=kept, **options
    ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()  # "glowserve: the pages are at URL"
            assert line.startswith("glowserve: the pages are at "), line or process.communicate()
            yield process, line.split()[-1]
        finally:
            process.kill()
