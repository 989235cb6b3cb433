"""What one would write first, to compare with: whole buffers from rank to rank."""

import numpy as np

from minitrain.arrays.types import Array
from minitrain.comm.interface import Comm
from minitrain.study.algorithms.hop import Hop, Hops, exchange


def all_reduce(comm: Comm, buffer: Array) -> Hops:
    """In n - 1 hops: buffer <- the sum over ranks. Everybody sends its whole buffer to everybody.

    Ranks add in different orders, so of floats the last bits may differ between ranks.
    """
    own, arriving, whole = buffer.copy(), np.empty_like(buffer), slice(0, buffer.size)
    for distance in range(1, comm.size):
        right, left = (comm.rank + distance) % comm.size, (comm.rank - distance) % comm.size
        exchange(comm, own, right, arriving, left)
        buffer += arriving
        yield Hop(right, whole, left, whole, added=True)


def broadcast(comm: Comm, buffer: Array, root: int = 0) -> Hops:
    """In n - 1 hops: buffer <- the buffer of `root`, which sends it to one rank after another."""
    whole = slice(0, buffer.size)
    for to in range(comm.size):
        if to == root:
            continue
        hop = Hop()
        if comm.rank == root:
            comm.send(buffer, to)
            hop = Hop(to=to, sent=whole)
        elif comm.rank == to:
            comm.recv(buffer, root)
            hop = Hop(source=root, received=whole)
        yield hop
