"""Copies of arrays for a kernel to work on, with guards around: 0xFF bytes, NaN in every type of floating
point. Who reads there gets NaN, who writes there is found out.
"""

import ctypes
from typing import NamedTuple

import numpy as np

GUARD = 256  # bytes, at least


class Span(NamedTuple):
    """Memory of the arrays from `start` to `stop`, copied into `buffer` at `offset`."""

    start: int
    stop: int
    buffer: np.ndarray
    offset: int


class Guarded:
    """Arrays that share memory share it in the copy too."""

    def __init__(self, arrays: list[np.ndarray]) -> None:
        extents = []
        for x in arrays:
            assert x.flags.c_contiguous, "a kernel is given an array that is not C-contiguous"
            if x.size:
                extents.append((x.ctypes.data, x.ctypes.data + x.nbytes))
        self.spans: list[Span] = []
        for start, stop in _merged(extents):
            buffer = np.full(stop - start + 2 * GUARD + 64, 0xFF, np.uint8)
            # the same place within 64 bytes: what is aligned stays so, what is not too
            offset = GUARD + (start - buffer.ctypes.data - GUARD) % 64
            ctypes.memmove(buffer.ctypes.data + offset, start, stop - start)
            self.spans.append(Span(start, stop, buffer, offset))

    def place(self, x: np.ndarray) -> tuple[int, int]:
        """Which span an array is in, and how many bytes after the start of its buffer."""
        at = x.ctypes.data
        i, span = next((i, s) for i, s in enumerate(self.spans) if s.start <= at < s.stop)
        return i, span.offset + at - span.start

    def address(self, x: np.ndarray) -> int:
        """In the copy."""
        if x.size == 0:
            return 0
        i, offset = self.place(x)
        return int(self.spans[i].buffer.ctypes.data) + offset

    def put_back(self, kernel: str) -> None:
        """What the kernel has written, into the arrays."""
        for start, stop, buffer, offset in self.spans:
            end = offset + stop - start
            assert (buffer[:offset] == 0xFF).all() and (buffer[end:] == 0xFF).all(), (
                f"{kernel} wrote outside of its arrays"
            )
            ctypes.memmove(start, buffer.ctypes.data + offset, stop - start)


def _merged(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    for start, stop in sorted(spans):
        if merged and start < merged[-1][1]:
            merged[-1] = merged[-1][0], max(stop, merged[-1][1])
        else:
            merged.append((start, stop))
    return merged
