"""What keeps a service small with glibc's memory allocator. Nothing happens with other C libraries."""

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
    if not is_set and (libc := _glibc()):
        libc.mallopt(_M_ARENA_MAX, _ARENAS)


def trim() -> None:
    """Returns free memory to the system. Takes milliseconds per GiB, in which other threads of Python go on."""
    if libc := _glibc():
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    return libc if hasattr(libc, "gnu_get_libc_version") else None
