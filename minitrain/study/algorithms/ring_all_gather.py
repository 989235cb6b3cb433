"""All-gather in a ring."""

from minitrain.arrays.types import Array
from minitrain.comm.interface import Comm
from minitrain.study.algorithms.hop import Hop, Hops, cut, exchange


def all_gather(comm: Comm, buffer: Array) -> Hops:
    """In n - 1 hops: every slice c of `buffer` <- the slice c of rank c.

    Each rank passes on what came last: first its own slice, and in the end that of its right neighbour.
    """
    n, rank, slices = comm.size, comm.rank, cut(buffer.size, comm.size)
    right, left = (rank + 1) % n, (rank - 1) % n
    for hop in range(n - 1):
        sent = slices[(rank - hop) % n]
        received = slices[(rank - 1 - hop) % n]
        exchange(comm, buffer[sent], right, buffer[received], left)
        yield Hop(right, sent, left, received)
