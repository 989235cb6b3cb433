"""Checksums of files, chunk by chunk, so that many ranks share the work and damage has a place.

XXH3 with 128 bits: as fast as memory. It finds what happens to files by accident: flipped bits, truncation, a
mixture of two copies. It does not keep out an attacker, who can write a manifest to match.
"""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import xxhash

from minitrain.arrays.types import Array
from minitrain.comm.interface import Comm

CHUNK = 16 << 20  # bytes with a checksum of their own
_BUFFER = 1 << 20  # bytes read at a time


def n_chunks(n_bytes: int) -> int:
    return -(-n_bytes // CHUNK)


def digest(data: bytes) -> str:
    """32 hexadecimal digits."""
    return str(xxhash.xxh3_128_hexdigest(data))


def digest_own_chunks(path: Path, n_bytes: int, comm: Comm) -> Array:
    """Two uint64 for each chunk of the file: those of the chunks that are this rank's share, zero for the
    others. A sum over `comm` has them all. Raises OSError.
    """
    words = np.zeros((n_chunks(n_bytes), 2), np.uint64)
    buffer = memoryview(bytearray(_BUFFER))
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        for chunk in range(comm.rank, len(words), comm.size):
            words[chunk] = _digest_at(file, chunk * CHUNK, min(CHUNK, n_bytes - chunk * CHUNK), buffer)
    finally:
        os.close(file)
    return words


def digest_own_part(values: Array, comm: Comm, check: Callable[[], None]) -> Array:
    """The same of an array that all ranks have. `check` is called before each chunk is read."""
    step = CHUNK // values.itemsize
    words = np.zeros((n_chunks(values.nbytes), 2), np.uint64)
    for chunk in range(comm.rank, len(words), comm.size):
        check()
        part = np.ascontiguousarray(values[chunk * step : (chunk + 1) * step])
        words[chunk] = divmod(xxhash.xxh3_128_intdigest(part.data), 1 << 64)
    return words


def _digest_at(file: int, start: int, n_bytes: int, buffer: memoryview) -> tuple[int, int]:
    state = xxhash.xxh3_128()
    end = start + n_bytes
    while start < end:
        n = os.preadv(file, [buffer[: end - start]], start)
        if n == 0:
            raise OSError("it is shorter than it was")
        state.update(buffer[:n])
        start += n
    return divmod(state.intdigest(), 1 << 64)


def to_hex(words: Array) -> list[str]:
    """One text for each chunk."""
    return [f"{int(high):016x}{int(low):016x}" for high, low in words]


def first_difference(words: Array, chunks: list[str], comm: Comm) -> int | None:
    """The first of this rank's chunks that is not what it was."""
    for chunk in range(comm.rank, len(chunks), comm.size):
        if to_hex(words[chunk : chunk + 1])[0] != chunks[chunk]:
            return chunk
    return None
