"""Blocks of rows small enough to stay in a core's cache while several operations pass over them."""

from collections.abc import Iterator

import numpy as np

from minitrain.arrays.types import Array

BLOCK_BYTES = 256 * 1024  # a block and three temporaries of its size fit an L2 cache of 1 MB


def row_blocks(n_rows: int, row_bytes: int) -> Iterator[slice]:
    """Slices that cover 0 .. n_rows in order, each of about `BLOCK_BYTES` bytes (at least one row)."""
    step = max(1, BLOCK_BYTES // max(1, row_bytes))
    for start in range(0, n_rows, step):
        yield slice(start, min(start + step, n_rows))


def all_finite(vector: Array) -> bool:
    """Whether no element is infinite or NaN."""
    blocks = row_blocks(vector.size, vector.itemsize)
    return all(bool(np.isfinite(vector[block]).all()) for block in blocks)
