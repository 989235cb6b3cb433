"""What a communicator is: the verbs, their exact meaning, and what the caller owes.

Every buffer is a C-contiguous array that belongs to the caller. All members of a group call the same verbs
in the same order with arrays of the same size and dtype. A group of one returns at once. `single`,
`threads` and `mpi` implement this; `traced` wraps any of them.
"""

from collections.abc import Sequence
from typing import Literal, Protocol

from minitrain.arrays.types import Array

Reduction = Literal["sum", "max"]


class Handle(Protocol):
    """A started transfer. Its buffer must stay untouched until `wait` returns."""

    def wait(self) -> None: ...


class Comm(Protocol):
    """A group of ranks and this rank's place in it. `members` are the ranks' numbers in the world, in group
    order.
    """

    name: str
    rank: int
    size: int
    members: tuple[int, ...]

    def all_reduce(self, buffer: Array, op: Reduction = "sum") -> None:
        """buffer <- sum (or maximum) over ranks of their buffers, in place, the same bits on every rank."""

    def reduce_scatter(self, source: Array, shard: Array) -> None:
        """shard <- this rank's 1/size of the sum over ranks of `source`. `shard` may be that very part of
        `source`.
        """

    def all_gather(self, shard: Array, target: Array) -> None:
        """target <- the ranks' shards one after another. `shard` may be this rank's part of `target`."""

    def broadcast(self, buffer: Array, root: int) -> None:
        """buffer <- the buffer of `root`."""

    def send(self, buffer: Array, to: int) -> None:
        """Returns when the buffer may be reused; may wait for the matching receive."""

    def start_send(self, buffer: Array, to: int) -> Handle:
        """Returns at once; messages between two ranks arrive in the order in which they were started."""

    def recv(self, buffer: Array, source: int) -> None:
        """buffer <- the next message of `source`; waits for it."""

    def barrier(self) -> None:
        """Returns once every member has called it."""

    def split(self, color: int | None, name: str) -> "Comm":
        """The group of those members that passed the same `color`, in rank order; with None a group of this
        rank alone.
        """

    def cart(self, dims: Sequence[int]) -> "Cart":
        """Arranges the members as a grid of the given extents, the last dimension varying fastest."""


class Cart(Protocol):
    """A Cartesian arrangement of ranks."""

    coords: tuple[int, ...]

    def sub(self, keep: Sequence[bool], name: str) -> Comm:
        """The group of ranks that differ from this one only in the dimensions kept."""


class World(Comm, Protocol):
    """The group of all ranks of a job."""

    def abort(self, exit_code: int) -> None:
        """Ends every rank of the job. May be called by one rank alone, at any time."""
