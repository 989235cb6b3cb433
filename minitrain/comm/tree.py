"""A communicator whose sums are taken in the order of a binary tree over its ranks, ((0 + 1) + (2 + 3)) + ...

A library adds up in an order of its own, which depends on the number of ranks, the length of the buffer and
where the ranks are. Here the order is the tree's alone (`arrays/tree.py`), so that a sum over 4 ranks has the
bits of one over 2 ranks that have each added up their half before. The groups have 2^k ranks.
"""

from collections.abc import Sequence

import numpy as np

from minitrain.arrays.device import HOST, Device
from minitrain.arrays.pool import Pool
from minitrain.arrays.tree import TreeSum
from minitrain.arrays.types import Array
from minitrain.comm.interface import Cart, Comm, Handle, Reduction


def tree_ordered(inner: Comm, device: Device = HOST) -> Comm:
    """`inner` with sums in tree order, of arrays of `device`. A group of one adds nothing up and is left as
    it is.
    """
    return inner if inner.size == 1 else TreeComm(inner, device)


class TreeComm:
    """Wraps `inner`, whose messages the sums are made of; every other verb is passed on."""

    def __init__(self, inner: Comm, device: Device) -> None:
        self._inner, self._pool = inner, Pool(device)
        self.name, self.rank, self.size, self.members = inner.name, inner.rank, inner.size, inner.members

    def all_reduce(self, buffer: Array, op: Reduction = "sum") -> None:
        """A sum sends log2(size) buffers: with the neighbour first, then with the pair beside, ..."""
        if op == "max":
            self._inner.all_reduce(buffer, op)
            return
        theirs = np.empty_like(buffer)
        distance = 1
        while distance < self.size:
            self._exchange(buffer, theirs, self.rank ^ distance)
            buffer += theirs
            distance *= 2

    def reduce_scatter(self, source: Array, shard: Array) -> None:
        """Every rank gets all others' parts of its own shard, that of rank ^ i in round i. After 2^j rounds
        these are of 2^j ranks that are a node of the tree.
        """
        parts = source.reshape(self.size, -1)
        tree = TreeSum(self.size, self._pool)
        for i in range(self.size):
            part, partner = self._pool.take(shard.size, shard.dtype), self.rank ^ i
            if i == 0:
                part[...] = parts[self.rank]
            else:
                self._exchange(parts[partner], part, partner)
            total = tree.add(part)
        assert total is not None
        shard[...] = total
        self._pool.give_back(total)

    def _exchange(self, mine: Array, theirs: Array, partner: int) -> None:
        sent = self._inner.start_send(mine, partner)
        self._inner.recv(theirs, partner)
        sent.wait()

    def all_gather(self, shard: Array, target: Array) -> None:
        self._inner.all_gather(shard, target)

    def broadcast(self, buffer: Array, root: int) -> None:
        self._inner.broadcast(buffer, root)

    def send(self, buffer: Array, to: int) -> None:
        self._inner.send(buffer, to)

    def start_send(self, buffer: Array, to: int) -> Handle:
        return self._inner.start_send(buffer, to)

    def recv(self, buffer: Array, source: int) -> None:
        self._inner.recv(buffer, source)

    def barrier(self) -> None:
        self._inner.barrier()

    def split(self, color: int | None, name: str) -> Comm:
        return self._inner.split(color, name)

    def cart(self, dims: Sequence[int]) -> Cart:
        return self._inner.cart(dims)
