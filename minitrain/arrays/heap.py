"""Freed memory stays with the process, so that the arrays of the next step are made of pages it already has.

By default the C library gives large freed blocks back to the system, which maps and zeroes every page anew
when it is next touched. A training step frees and makes the same megabytes again and again: that can be a
third of its time.
"""

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # <malloc.h>


def keep_freed_memory() -> bool:
    """Whether the C library agreed: glibc does (mallopt(3)), others know no such thing and stay as they are.

    Call it once, when the process starts. The peak of memory is the same, but it is held until the end.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        return False
    never_trim = mallopt(M_TRIM_THRESHOLD, -1)
    no_separate_mappings = mallopt(M_MMAP_MAX, 0)
    return bool(never_trim and no_separate_mappings)
