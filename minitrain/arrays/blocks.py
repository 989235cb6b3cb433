"""Blocks of rows small enough to stay in a core's cache while several elementwise operations pass over them."""

from collections.abc import Iterator

BLOCK_BYTES = 128 * 1024  # half of a small L2 cache: the block and one temporary of its size


def row_blocks(n_rows: int, row_bytes: int) -> Iterator[slice]:
    """Slices that cover 0 .. n_rows in order, each of about `BLOCK_BYTES` bytes (at least one row)."""
    step = max(1, BLOCK_BYTES // max(1, row_bytes))
    for start in range(0, n_rows, step):
        yield slice(start, min(start + step, n_rows))
