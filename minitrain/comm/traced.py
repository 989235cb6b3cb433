"""A communicator that passes every call on, and tells two listeners of it: a ledger what it sends, a watch
when it begins and when it is done.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np

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


class Call(NamedTuple):
    """One call as a watch sees it: any verb, receives, barriers and the making of groups too.

    `ranks` are the members of the group; of a message its sender and its receiver. `number` counts the calls
    of this group, or the messages that way, from 1. A started send is two calls of one number: `send`, then
    `wait` for its end. With `on_device` it returns before the GPU has done it, maybe.
    """

    verb: str
    axis: str
    ranks: tuple[int, ...]
    number: int
    dtype: str = ""
    elements: int = 0
    on_device: bool = False


class Watch(Protocol):
    """Is told of every call, in the thread that makes it."""

    def begin(self, call: Call) -> None: ...

    def end(self) -> None: ...


class _NoWatch:
    def begin(self, call: Call) -> None:
        pass

    def end(self) -> None:
        pass


class TracedComm:
    """Wraps `inner`. `ledger` is called once for every verb that sends, before the data moves; `watch` at
    the beginning and the end of all.
    """

    def __init__(self, inner: Comm, ledger: Ledger, watch: Watch) -> None:
        self._inner, self._ledger, self._watch = inner, ledger, watch
        self.name, self.rank, self.size, self.members = inner.name, inner.rank, inner.size, inner.members
        self._n_calls, self._n_messages = 0, Counter[tuple[int, int]]()

    def all_reduce(self, buffer: Array, op: Reduction = "sum") -> None:
        with self._collective("all_reduce", buffer):
            self._inner.all_reduce(buffer, op)

    def reduce_scatter(self, source: Array, shard: Array) -> None:
        with self._collective("reduce_scatter", source):
            self._inner.reduce_scatter(source, shard)

    def all_gather(self, shard: Array, target: Array) -> None:
        with self._collective("all_gather", target):
            self._inner.all_gather(shard, target)

    def broadcast(self, buffer: Array, root: int) -> None:
        with self._collective("broadcast", buffer):
            self._inner.broadcast(buffer, root)

    def send(self, buffer: Array, to: int) -> None:
        with self._message("send", buffer, self.rank, to):
            self._inner.send(buffer, to)

    def start_send(self, buffer: Array, to: int) -> Handle:
        with self._message("send", buffer, self.rank, to) as call:
            handle = self._inner.start_send(buffer, to)
        return _TracedHandle(handle, self._watch, call._replace(verb="wait"))

    def recv(self, buffer: Array, source: int) -> None:
        with self._message("recv", buffer, source, self.rank):
            self._inner.recv(buffer, source)

    def barrier(self) -> None:
        with self._collective("barrier"):
            self._inner.barrier()

    def split(self, color: int | None, name: str) -> Comm:
        with self._collective("split"):
            part = self._inner.split(color, name)
        return traced(part, self._ledger, self._watch)

    def cart(self, dims: Sequence[int]) -> Cart:
        with self._collective("cart"):
            cart = self._inner.cart(dims)
        return _TracedCart(cart, self)

    def _sub(self, cart: Cart, keep: Sequence[bool], name: str) -> Comm:
        with self._collective("sub"):
            part = cart.sub(keep, name)
        return traced(part, self._ledger, self._watch)

    def _collective(self, verb: str, buffer: Array | None = None) -> "_Watched":
        self._n_calls += 1
        call = Call(verb, self.name, self.members, self._n_calls)
        if buffer is None:
            return _Watched(self._watch, call)
        self._note(verb, buffer)
        return _Watched(self._watch, _with_buffer(call, buffer))

    def _message(self, verb: str, buffer: Array, source: int, to: int) -> "_Watched":
        way = self.members[source], self.members[to]
        self._n_messages[way] += 1
        if verb == "send":  # bytes are counted where they are sent
            self._note(verb, buffer)
        return _Watched(self._watch, _with_buffer(Call(verb, self.name, way, self._n_messages[way]), buffer))

    def _note(self, verb: str, buffer: Array) -> None:
        if buffer.size == 0:  # nothing moves
            return
        sent = ring_bytes(verb, buffer.nbytes, self.size)
        event = Event(verb, self.name, self.members, buffer.dtype.name, buffer.size, buffer.nbytes, sent)
        self._ledger(event)


def _with_buffer(call: Call, buffer: Array) -> Call:
    on_device = not isinstance(buffer, np.ndarray)
    return call._replace(dtype=buffer.dtype.name, elements=buffer.size, on_device=on_device)


class _TracedCart:
    """The members of `parent` as a grid. To make a group of it is a call of all of them."""

    def __init__(self, inner: Cart, parent: TracedComm) -> None:
        self._inner, self._parent = inner, parent
        self.coords = inner.coords

    def sub(self, keep: Sequence[bool], name: str) -> Comm:
        return self._parent._sub(self._inner, keep, name)


class _TracedHandle:
    """A started send, whose wait is watched."""

    def __init__(self, inner: Handle, watch: Watch, call: Call) -> None:
        self._inner, self._watch, self._call = inner, watch, call

    def wait(self) -> None:
        with _Watched(self._watch, self._call):
            self._inner.wait()


class _Watched:
    """A context for a call: its watch is told of both ends, however it ends."""

    def __init__(self, watch: Watch, call: Call) -> None:
        self._watch, self._call = watch, call

    def __enter__(self) -> Call:
        self._watch.begin(self._call)
        return self._call

    def __exit__(self, *_: object) -> None:
        self._watch.end()


_NO_WATCH = _NoWatch()


def traced(inner: Comm, ledger: Ledger, watch: Watch = _NO_WATCH) -> Comm:
    """`inner` with a ledger and a watch. A group of one moves nothing and is left as it is."""
    return inner if inner.size == 1 else TracedComm(inner, ledger, watch)
