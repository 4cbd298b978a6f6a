"""How this process holds memory: large tables, which come and go all the time, are given back at once."""

from __future__ import annotations

import ctypes

_M_MMAP_THRESHOLD = -3  # malloc.h of glibc
_LARGE = 1 << 20  # bytes


def give_back_large_tables() -> None:
    """Have malloc(3) map each large array by itself. Left alone, glibc soon takes them from heaps of which
    each thread has its own, and which shrink seldom. Another C library is left as it is."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGE)
