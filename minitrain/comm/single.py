"""A group of one rank: every collective is already done."""

import sys
from collections.abc import Sequence

from minitrain.arrays.types import Array
from minitrain.comm.interface import Comm, Handle, Reduction


class SingleComm:
    """The whole world of a serial run, and any axis of extent 1 of a parallel one."""

    rank = 0
    size = 1

    def __init__(self, name: str = "world", member: int = 0) -> None:
        self.name = name
        self.members: tuple[int, ...] = (member,)

    def all_reduce(self, buffer: Array, op: Reduction = "sum") -> None:
        return

    def reduce_scatter(self, source: Array, shard: Array) -> None:
        if shard is not source:
            shard[...] = source

    def all_gather(self, shard: Array, target: Array) -> None:
        if target is not shard:
            target[...] = shard

    def broadcast(self, buffer: Array, root: int) -> None:
        return

    def send(self, buffer: Array, to: int) -> None:
        raise AssertionError(f"a message to rank {to} of a group of one")

    def start_send(self, buffer: Array, to: int) -> Handle:
        raise AssertionError(f"a message to rank {to} of a group of one")

    def recv(self, buffer: Array, source: int) -> None:
        raise AssertionError(f"a message from rank {source} of a group of one")

    def barrier(self) -> None:
        return

    def split(self, color: int | None, name: str) -> Comm:
        return SingleComm(name, self.members[0])

    def cart(self, dims: Sequence[int]) -> "SingleCart":
        assert all(n == 1 for n in dims), f"one rank cannot be arranged as {tuple(dims)}"
        return SingleCart(len(dims), self.members[0])

    def abort(self, exit_code: int) -> None:
        sys.exit(exit_code)


class SingleCart:
    """The grid of one rank."""

    def __init__(self, n_dims: int, member: int) -> None:
        self.coords = (0,) * n_dims
        self._member = member

    def sub(self, keep: Sequence[bool], name: str) -> Comm:
        return SingleComm(name, self._member)
