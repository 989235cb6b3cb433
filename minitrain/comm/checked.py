"""A communicator that lets ranks compare what they are about to do before any of their data moves.

MPI does not: if one rank sums where another takes the maximum, or brings int32 where another has float32, all
return success and garbage; different sizes may overwrite memory. Here every rank of the group raises the same
InternalError, which says what each of them was about to do.

    before a collective   an all-reduce of two integers: the maximum of a fingerprint h, and of ~h. They are
                          each other's complement exactly if all fingerprints are equal
    before a message      a header of fixed length, which the receiver compares with what it expects; of a
                          device array after it

A rank that leaves a collective out is seen at its next one over the same group, if that is a different one;
otherwise the others wait for it, which is the watchdog's to see.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from minitrain.arrays.types import Array
from minitrain.comm.agree import alike, fingerprint, gather_texts
from minitrain.comm.interface import Cart, Comm, Handle, Reduction
from minitrain.comm.ranks import name_ranks, who_says
from minitrain.errors import InternalError

HEADER = 128  # bytes
REMEDY = "this is a defect: run again with --debug for the place"


def checked(inner: Comm) -> Comm:
    """`inner` with a check before every call. The members of `inner` are taken for all ranks of the job."""
    return _checked(inner, inner.size)


def _checked(inner: Comm, n_world: int) -> Comm:
    return inner if inner.size == 1 else CheckedComm(inner, n_world)


class CheckedComm:
    """Wraps `inner`; of `n_world` ranks in all, its members are some or all."""

    def __init__(self, inner: Comm, n_world: int) -> None:
        self._inner, self._n_world = inner, n_world
        self.name, self.rank, self.size, self.members = inner.name, inner.rank, inner.size, inner.members
        self._n_calls, self._n_messages = 0, Counter[tuple[int, int]]()

    def all_reduce(self, buffer: Array, op: Reduction = "sum") -> None:
        self._compare(f"all_reduce({op})", buffer)
        self._inner.all_reduce(buffer, op)

    def reduce_scatter(self, source: Array, shard: Array) -> None:
        self._compare("reduce_scatter", source, shard)
        self._inner.reduce_scatter(source, shard)

    def all_gather(self, shard: Array, target: Array) -> None:
        self._compare("all_gather", target, shard)
        self._inner.all_gather(shard, target)

    def broadcast(self, buffer: Array, root: int) -> None:
        self._compare(f"broadcast from rank {self.members[root]}", buffer)
        self._inner.broadcast(buffer, root)

    def send(self, buffer: Array, to: int) -> None:
        self.start_send(buffer, to).wait()

    def start_send(self, buffer: Array, to: int) -> Handle:
        header, where = self._header(buffer, self.rank, to)
        if not buffer.flags.c_contiguous:
            raise InternalError("a message is not C-contiguous", where, REMEDY)
        first, second = (header, buffer) if isinstance(buffer, np.ndarray) else (buffer, header)
        return _Both(self._inner.start_send(first, to), self._inner.start_send(second, to))

    def recv(self, buffer: Array, source: int) -> None:
        expected, where = self._header(buffer, source, self.rank)
        header, on_device = np.empty_like(expected), not isinstance(buffer, np.ndarray)
        if on_device:  # the header's sender may wait for what this rank holds back until here (nccl.py)
            self._inner.recv(buffer, source)
        self._inner.recv(header, source)
        if not np.array_equal(header, expected):
            us, them = self.members[self.rank], self.members[source]
            what = f"rank {them} sends {_text(header)}, but rank {us} expects {_text(expected)}"
            raise InternalError(what, where, REMEDY)
        if not buffer.flags.c_contiguous:
            raise InternalError("a buffer for a message is not C-contiguous", where, REMEDY)
        if not on_device:
            self._inner.recv(buffer, source)

    def barrier(self) -> None:
        self._compare("barrier")
        self._inner.barrier()

    def split(self, color: int | None, name: str) -> Comm:
        self._compare(f"split into {name}")
        return _checked(self._inner.split(color, name), self._n_world)

    def cart(self, dims: Sequence[int]) -> Cart:
        self._compare(f"cart of {_shape(dims)}")
        return _CheckedCart(self._inner.cart(dims), self)

    def _sub(self, cart: Cart, keep: Sequence[bool], name: str) -> Comm:
        self._compare(f"sub {name} along {[dim for dim, kept in enumerate(keep) if kept]}")
        return _checked(cart.sub(keep, name), self._n_world)

    def _compare(self, verb: str, whole: Array | None = None, shard: Array | None = None) -> None:
        """Returns if every member of the group is about to do the same, and something legal."""
        self._n_calls += 1
        plan, fault = verb, ""
        if whole is not None:
            plan = f"{verb} of {whole.size} {whole.dtype.name}"
            fault = _fault(whole, self.size, shard)
        mark = fingerprint(plan + fault) ^ self._n_calls
        if not alike(self._inner, np.array([mark]))[0] or fault:  # a rank at fault compares like all others
            raise self._difference(plan + fault)

    def _difference(self, plan: str) -> InternalError:
        """The same error on every rank of the group."""
        told = who_says(gather_texts(self._inner, plan))
        where = f"call {self._n_calls} over {self.name}, {name_ranks(self.members)}"
        error = InternalError(f"ranks disagree about a collective, or it is illegal: {told}", where, REMEDY)
        error.known_everywhere, error.told_by = self.size == self._n_world, self.members[0]
        return error

    def _header(self, buffer: Array, source: int, to: int) -> tuple[Array, str]:
        """What goes before a message, and which message that is."""
        way = source, to
        self._n_messages[way] += 1
        number = self._n_messages[way]
        where = f"over {self.name} from rank {self.members[source]} to rank {self.members[to]}"
        return _bytes(f"message {number} of {_shape(buffer.shape)} {buffer.dtype.name}"), where


class _CheckedCart:
    """The members of `parent` as a grid. To make a group of it is a call of all of them."""

    def __init__(self, inner: Cart, parent: CheckedComm) -> None:
        self._inner, self._parent = inner, parent
        self.coords = inner.coords

    def sub(self, keep: Sequence[bool], name: str) -> Comm:
        return self._parent._sub(self._inner, keep, name)


class _Both:
    """A header and its message, both on their way, in the order in which they are received."""

    def __init__(self, first: Handle, second: Handle) -> None:
        self._first, self._second = first, second

    def wait(self) -> None:
        self._first.wait()
        self._second.wait()


def _fault(whole: Array, size: int, shard: Array | None) -> str:
    """What is wrong with a rank's own buffers, whatever the others bring."""
    if not (whole.flags.c_contiguous and (shard is None or shard.flags.c_contiguous)):
        return ", not C-contiguous"
    if shard is not None and (shard.size * size, shard.dtype) != (whole.size, whole.dtype):
        return f" with a shard of {shard.size} {shard.dtype.name} on each of {size} ranks"
    return ""


def _bytes(text: str) -> Array:
    return np.frombuffer(text.encode()[:HEADER].ljust(HEADER, b"\0"), np.uint8).copy()


def _text(row: Array) -> str:
    return row.tobytes().rstrip(b"\0").decode(errors="replace")


def _shape(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape)) or "1"
