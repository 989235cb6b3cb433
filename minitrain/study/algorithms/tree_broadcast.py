"""Broadcast along a binomial tree."""

from minitrain.arrays.types import Array
from minitrain.comm.interface import Comm
from minitrain.study.algorithms.hop import Hop, Hops


def broadcast(comm: Comm, buffer: Array, root: int = 0) -> Hops:
    """In ceil(log2(n)) hops: buffer <- the buffer of `root`.

    At each hop all who have it send it to one who does not, so that their number doubles. Ranks are counted
    from the root: the first 1, 2, 4, ... have it.
    """
    n, place, whole = comm.size, (comm.rank - root) % comm.size, slice(0, buffer.size)
    have = 1
    while have < n:
        hop = Hop()
        if place < have and place + have < n:
            to = (place + have + root) % n
            comm.send(buffer, to)
            hop = Hop(to=to, sent=whole)
        elif have <= place < 2 * have:
            source = (place - have + root) % n
            comm.recv(buffer, source)
            hop = Hop(source=source, received=whole)
        yield hop
        have *= 2
