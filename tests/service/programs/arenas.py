"""Prints how many of glibc's arenas the threads of a process use, after share_arenas() if there is an argument."""

import ctypes
import os
import sys
import threading

THREADS = 12

if sys.argv[1:]:
    from glowserve_service.allocator import share_arenas

    share_arenas()
libc = ctypes.CDLL(None)
libc.malloc.restype = libc.fdopen.restype = ctypes.c_void_p
allocated, ended = threading.Barrier(THREADS + 1), threading.Event()


def allocate() -> None:
    """Allocates once; the thread keeps its arena until it ends."""
    libc.malloc(5000)
    allocated.wait()
    ended.wait()


for _ in range(THREADS):
    threading.Thread(target=allocate, daemon=True).start()
allocated.wait()
read, write = os.pipe()
stream = ctypes.c_void_p(libc.fdopen(write, b"w"))
libc.malloc_info(0, stream)
libc.fclose(stream)
with os.fdopen(read) as info:
    print(info.read().count("<heap nr="))
ended.set()
