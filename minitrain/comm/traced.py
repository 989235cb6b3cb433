"""A communicator that notes every call and passes it on."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

from minitrain.arrays.types import Array
from minitrain.comm.interface import Cart, Comm, Handle, Reduction


class Event(NamedTuple):
    """One collective or message as this rank called it.

    `bytes` is the size of the whole buffer (of the larger one, where two differ); `sent_bytes` what this
    rank sends if the collective is run as a ring.
    """

    verb: str
    axis: str
    group: tuple[int, ...]
    dtype: str
    elements: int
    bytes: int
    sent_bytes: int


def ring_bytes(verb: str, n_bytes: int, size: int) -> int:
    """Bytes one rank sends in a ring of `size` ranks for a buffer of `n_bytes`, rounded up (Patarasuk &
    Yuan 2009).

    all-reduce 2(n-1)/n, reduce-scatter and all-gather (n-1)/n of the buffer; broadcast and send the whole
    of it.
    """
    hops = {"all_reduce": 2 * (size - 1), "reduce_scatter": size - 1, "all_gather": size - 1}.get(verb, size)
    return -(-hops * n_bytes // size)


Ledger = Callable[[Event], None]


class ByteCounter:
    """A ledger that keeps sums only: sent bytes by axis and verb."""

    def __init__(self) -> None:
        self._sent: Counter[tuple[str, str]] = Counter()

    def __call__(self, event: Event) -> None:
        self._sent[event.axis, event.verb] += event.sent_bytes

    def take(self) -> dict[str, dict[str, int]]:
        """The sums since the last `take`, as {axis: {verb: bytes}}."""
        nested: dict[str, dict[str, int]] = {}
        for (axis, verb), n in sorted(self._sent.items()):
            nested.setdefault(axis, {})[verb] = n
        self._sent.clear()
        return nested


class TracedComm:
    """Wraps `inner`; `ledger` is called once per verb, before the data moves."""

    def __init__(self, inner: Comm, ledger: Ledger) -> None:
        self._inner, self._ledger = inner, ledger
        self.name, self.rank, self.size, self.members = inner.name, inner.rank, inner.size, inner.members

    def _note(self, verb: str, buffer: Array) -> None:
        if buffer.size == 0:  # nothing moves
            return
        sent = ring_bytes(verb, buffer.nbytes, self.size)
        self._ledger(
            Event(verb, self.name, self.members, buffer.dtype.name, buffer.size, buffer.nbytes, sent)
        )

    def all_reduce(self, buffer: Array, op: Reduction = "sum") -> None:
        self._note("all_reduce", buffer)
        self._inner.all_reduce(buffer, op)

    def reduce_scatter(self, source: Array, shard: Array) -> None:
        self._note("reduce_scatter", source)
        self._inner.reduce_scatter(source, shard)

    def all_gather(self, shard: Array, target: Array) -> None:
        self._note("all_gather", target)
        self._inner.all_gather(shard, target)

    def broadcast(self, buffer: Array, root: int) -> None:
        self._note("broadcast", buffer)
        self._inner.broadcast(buffer, root)

    def send(self, buffer: Array, to: int) -> None:
        self._note("send", buffer)
        self._inner.send(buffer, to)

    def start_send(self, buffer: Array, to: int) -> Handle:
        self._note("send", buffer)
        return self._inner.start_send(buffer, to)

    def recv(self, buffer: Array, source: int) -> None:
        self._inner.recv(buffer, source)  # counted where it is sent

    def barrier(self) -> None:
        self._inner.barrier()

    def split(self, color: int | None, name: str) -> Comm:
        return traced(self._inner.split(color, name), self._ledger)

    def cart(self, dims: Sequence[int]) -> Cart:
        return _TracedCart(self._inner.cart(dims), self._ledger)


class _TracedCart:
    def __init__(self, inner: Cart, ledger: Ledger) -> None:
        self._inner, self._ledger = inner, ledger
        self.coords = inner.coords

    def sub(self, keep: Sequence[bool], name: str) -> Comm:
        return traced(self._inner.sub(keep, name), self._ledger)


def traced(inner: Comm, ledger: Ledger) -> Comm:
    """`inner` with a ledger. A group of one moves nothing and is left as it is."""
    return inner if inner.size == 1 else TracedComm(inner, ledger)
