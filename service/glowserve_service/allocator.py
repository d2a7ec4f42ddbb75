"""A setting of glibc's memory allocator that keeps a service with many threads small."""

from __future__ import annotations

import ctypes
import os
import sys

# malloc.h
_M_ARENA_MAX = -8
_ARENAS = 2


def share_arenas() -> None:
    """Limits glibc to two arenas, unless $MALLOC_ARENA_MAX or $GLIBC_TUNABLES sets another limit.

    glibc's own limit is eight arenas per core. Each arena keeps the most memory that its threads ever used at once.
    Arenas that exist already stay, so call this before threads start. Other C libraries have no such limit.
    """
    is_set = "MALLOC_ARENA_MAX" in os.environ or "arena_max" in os.environ.get("GLIBC_TUNABLES", "")
    if sys.platform == "linux" and not is_set:
        libc = ctypes.CDLL(None)
        if hasattr(libc, "gnu_get_libc_version"):
            libc.mallopt(_M_ARENA_MAX, _ARENAS)
