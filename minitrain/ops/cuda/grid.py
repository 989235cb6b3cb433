"""How many blocks and threads kernels are started with whose threads take 16 bytes of an array at a time."""

from minitrain.arrays.types import Array

RUN = 16  # bytes
THREADS = 256
MOST_BLOCKS = 32768  # some dozen for every place on a GPU; of more elements each thread takes several runs


def blocks(x: Array, most: int = MOST_BLOCKS) -> int:
    """Of `THREADS` threads, for all elements of x; none if there are none."""
    return min(-(-x.nbytes // (RUN * THREADS)), most)


def row_threads(row_bytes: int, most: int = 512) -> int:
    """Of a block that takes a row: whole warps, at most `most` threads."""
    return max(32, min(most, -(-row_bytes // (RUN * 32)) * 32))
