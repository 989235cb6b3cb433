"""Reduce-scatter in a ring (Patarasuk & Yuan 2009)."""

from collections.abc import Callable

import numpy as np

from minitrain.arrays.types import Array
from minitrain.comm.interface import Comm
from minitrain.study.algorithms.hop import Hop, Hops, cut, exchange


def reduce_scatter(comm: Comm, buffer: Array, combine: Callable[[Array, Array], Array] = np.add) -> Hops:
    """In n - 1 hops: slice `rank` of `buffer` <- the sum over ranks of their slices. What is left in the
    other slices is of no use.

    Slice c starts at rank c + 1 and goes once around. Every rank adds its own part, and rank c, the last
    one, has the sum.
    """
    n, rank, slices = comm.size, comm.rank, cut(buffer.size, comm.size)
    right, left = (rank + 1) % n, (rank - 1) % n
    for hop in range(n - 1):
        sent = slices[(rank - 1 - hop) % n]
        received = slices[(rank - 2 - hop) % n]
        arriving = np.empty_like(buffer[received])
        exchange(comm, buffer[sent], right, arriving, left)
        buffer[received] = combine(buffer[received], arriving)
        yield Hop(right, sent, left, received, added=True)
