"""All-to-all by exchange with each rank in turn."""

from minitrain.arrays.types import Array
from minitrain.comm.interface import Comm
from minitrain.study.algorithms.hop import Hop, Hops, cut, exchange


def all_to_all(comm: Comm, source: Array, target: Array) -> Hops:
    """In n - 1 hops: slice c of `target` <- the slice `rank` of the source of rank c. A transposition: what
    rank a has for rank b becomes what rank b has from rank a.

    At distance d everybody sends to the rank d to the right, and receives from the rank d to the left.
    """
    n, rank, slices = comm.size, comm.rank, cut(source.size, comm.size)
    target[slices[rank]] = source[slices[rank]]
    for distance in range(1, n):
        right, left = (rank + distance) % n, (rank - distance) % n
        exchange(comm, source[slices[right]], right, target[slices[left]], left)
        yield Hop(right, slices[right], left, slices[left])
