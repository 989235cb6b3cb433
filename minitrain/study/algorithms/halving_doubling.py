"""All-reduce by recursive halving and doubling (Thakur, Rabenseifner & Gropp 2005), on 2^k ranks."""

import numpy as np

from minitrain.arrays.types import Array
from minitrain.comm.interface import Comm
from minitrain.study.algorithms.hop import Hop, Hops, cut, exchange


def all_reduce(comm: Comm, buffer: Array) -> Hops:
    """In 2 log2(n) hops: buffer <- the sum over ranks of their buffers."""
    yield from reduce_scatter(comm, buffer)  # now rank r has the sum of slice r
    yield from all_gather(comm, buffer)


def reduce_scatter(comm: Comm, buffer: Array) -> Hops:
    """In log2(n) hops: slice `rank` of `buffer` <- the sum over ranks of their slices.

    Partners share the slices they still care for, at first all: each keeps the half in which its own slice
    lies and sends the other half, to be added. First far partners, then near ones.
    """
    distance = comm.size // 2
    while distance >= 1:
        partner = comm.rank ^ distance
        sent, received = _slices(comm, buffer, partner, distance), _slices(comm, buffer, comm.rank, distance)
        arriving = np.empty_like(buffer[received])
        exchange(comm, buffer[sent], partner, arriving, partner)
        buffer[received] += arriving
        yield Hop(partner, sent, partner, received, added=True)
        distance //= 2


def all_gather(comm: Comm, buffer: Array) -> Hops:
    """In log2(n) hops: every slice c of `buffer` <- the slice c of rank c.

    The same the other way round: partners exchange all that they have, which doubles it.
    """
    distance = 1
    while distance < comm.size:
        partner = comm.rank ^ distance
        sent, received = _slices(comm, buffer, comm.rank, distance), _slices(comm, buffer, partner, distance)
        exchange(comm, buffer[sent], partner, buffer[received], partner)
        yield Hop(partner, sent, partner, received)
        distance *= 2


def _slices(comm: Comm, buffer: Array, rank: int, n: int) -> slice:
    """Of n ranks that are neighbours, `rank` among them, their slices, as one."""
    first, slices = rank // n * n, cut(buffer.size, comm.size)
    return slice(slices[first].start, slices[first + n - 1].stop)
