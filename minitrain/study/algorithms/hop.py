"""A hop: what one rank sends and receives in one step of a collective."""

from collections.abc import Iterator
from typing import NamedTuple, TypeAlias

from minitrain.arrays.types import Array
from minitrain.comm.interface import Comm

NOTHING = slice(0, 0)


class Hop(NamedTuple):
    """Elements of the buffer that went to rank `to`, and elements that came from rank `source`. A rank that
    rests has neither.
    """

    to: int | None = None
    sent: slice = NOTHING
    source: int | None = None
    received: slice = NOTHING
    added: bool = False  # what came was added to what was there, not put in its place


Hops: TypeAlias = Iterator[Hop]


def exchange(comm: Comm, mine: Array, to: int, theirs: Array, source: int) -> None:
    """mine -> rank `to`, theirs <- rank `source`. The send is started and not waited for: if all ranks sent
    before they receive, and a send ended with its receive, all would wait for ever.
    """
    sent = comm.start_send(mine, to)
    comm.recv(theirs, source)
    sent.wait()


def cut(size: int, n: int) -> list[slice]:
    """`size` elements as n slices, one after another, as equal as they can be."""
    return [slice(size * i // n, size * (i + 1) // n) for i in range(n)]


def finish(hops: Hops) -> None:
    """All hops that are left."""
    for _ in hops:
        pass
