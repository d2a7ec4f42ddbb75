"""Threads share two arenas of glibc's, unless the operator says otherwise."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

THREADS = 12
# Threads that have all allocated something, and how many arenas glibc says there are.
SCRIPT = f"""
import ctypes, os, sys, threading
if sys.argv[1:]:
    from glowserve_service.allocator import share_arenas
    share_arenas()
libc = ctypes.CDLL(None)
libc.malloc.restype = libc.fdopen.restype = ctypes.c_void_p
allocated, ended = threading.Barrier({THREADS + 1}), threading.Event()

def allocate():
    libc.malloc(5000)
    allocated.wait()
    ended.wait()

for _ in range({THREADS}):
    threading.Thread(target=allocate, daemon=True).start()
allocated.wait()
read, write = os.pipe()
stream = ctypes.c_void_p(libc.fdopen(write, b"w"))
libc.malloc_info(0, stream)
libc.fclose(stream)
print(os.fdopen(read).read().count("<heap nr="))
ended.set()
"""


def arenas(*arguments: str, **variables: str) -> int:
    environment = {name: value for name, value in os.environ.items() if name != "MALLOC_ARENA_MAX"}
    command = [sys.executable, "-c", SCRIPT, *arguments]
    done = subprocess.run(
        command, env=environment | variables, capture_output=True, text=True, timeout=60, check=True
    )
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_threads_share_two_arenas_unless_a_variable_says_otherwise() -> None:
    assert arenas() > 2
    assert arenas("share") == 2
    assert arenas("share", MALLOC_ARENA_MAX="4") == 4
