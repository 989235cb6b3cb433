"""How many blocks and threads kernels are started with whose threads take 16 bytes of an array at a time."""

RUN = 16  # bytes
THREADS = 256
MOST_BLOCKS = 16384  # a large GPU has some 1000 at a time: many rounds, so that none waits long for the last


def blocks(n: int, itemsize: int, most: int = MOST_BLOCKS) -> int:
    """Of `THREADS` threads, for n elements of so many bytes; none if there are none. Of more elements than
    `most` blocks can take at once, each thread takes several runs.
    """
    return min(-(-n * itemsize // (RUN * THREADS)), most)


def row_threads(row_bytes: int, most: int = 512) -> int:
    """Of a block that takes a row: whole warps, at most `most` threads."""
    return max(32, min(most, -(-row_bytes // (RUN * 32)) * 32))
