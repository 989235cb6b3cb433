"""A communicator whose collectives are messages, hop by hop, so that the bytes that they move can be counted
where they are sent, and not by a formula.
"""

from collections.abc import Sequence

import numpy as np

from minitrain.arrays.types import Array
from minitrain.comm.interface import Cart, Comm, Handle, Reduction
from minitrain.study.algorithms import ring_all_gather, ring_all_reduce, ring_reduce_scatter, tree_broadcast
from minitrain.study.algorithms.hop import finish

COMBINE = {"sum": np.add, "max": np.maximum}


def hopping(inner: Comm) -> Comm:
    """`inner` with the algorithms of study/algorithms: rings, and a tree for broadcasts. A group of one is
    left as it is.
    """
    return inner if inner.size == 1 else HoppingComm(inner)


class HoppingComm:
    """Wraps `inner`, whose messages its collectives are made of."""

    def __init__(self, inner: Comm) -> None:
        self._inner = inner
        self.name, self.rank, self.size, self.members = inner.name, inner.rank, inner.size, inner.members

    def all_reduce(self, buffer: Array, op: Reduction = "sum") -> None:
        assert buffer.flags.c_contiguous, "a communication buffer is C-contiguous"
        finish(ring_all_reduce.all_reduce(self._inner, buffer.reshape(-1), COMBINE[op]))

    def reduce_scatter(self, source: Array, shard: Array) -> None:
        partial = source.flatten()
        finish(ring_reduce_scatter.reduce_scatter(self._inner, partial))
        shard[...] = partial.reshape(self.size, *shard.shape)[self.rank]

    def all_gather(self, shard: Array, target: Array) -> None:
        assert target.flags.c_contiguous, "a communication buffer is C-contiguous"
        flat = target.reshape(self.size, -1)
        flat[self.rank] = shard.reshape(-1)
        finish(ring_all_gather.all_gather(self._inner, flat.reshape(-1)))

    def broadcast(self, buffer: Array, root: int) -> None:
        finish(tree_broadcast.broadcast(self._inner, buffer, root))

    def send(self, buffer: Array, to: int) -> None:
        self._inner.send(buffer, to)

    def start_send(self, buffer: Array, to: int) -> Handle:
        return self._inner.start_send(buffer, to)

    def recv(self, buffer: Array, source: int) -> None:
        self._inner.recv(buffer, source)

    def barrier(self) -> None:
        self._inner.barrier()

    def split(self, color: int | None, name: str) -> Comm:
        return hopping(self._inner.split(color, name))

    def cart(self, dims: Sequence[int]) -> Cart:
        return _HoppingCart(self._inner.cart(dims))


class _HoppingCart:
    """A grid whose groups hop too."""

    def __init__(self, inner: Cart) -> None:
        self._inner, self.coords = inner, inner.coords

    def sub(self, keep: Sequence[bool], name: str) -> Comm:
        return hopping(self._inner.sub(keep, name))
