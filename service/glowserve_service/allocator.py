"""How the C library keeps memory for this process."""

from __future__ import annotations

import ctypes
import os
import sys

# malloc.h
_M_ARENA_MAX = -8
_ARENAS = 2


def share_arenas() -> None:
    """Has all threads allocate from two of glibc's arenas, unless $MALLOC_ARENA_MAX or $GLIBC_TUNABLES says otherwise.

    By itself it makes up to eight for each core, of which each keeps what its threads have ever needed at once. Arenas
    that there are already stay. Other C libraries are left alone.
    """
    told = "MALLOC_ARENA_MAX" in os.environ or "arena_max" in os.environ.get("GLIBC_TUNABLES", "")
    if sys.platform == "linux" and not told:
        libc = ctypes.CDLL(None)
        if hasattr(libc, "gnu_get_libc_version"):
            libc.mallopt(_M_ARENA_MAX, _ARENAS)
