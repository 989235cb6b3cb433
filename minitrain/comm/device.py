"""A communicator for two kinds of arrays: those of the host go one way, those of a device another.

    NumPy arrays    over the communicator that it wraps, as if it were not there
    device arrays   over a transport: NCCL (nccl.py), or MPI with a stop in host memory (staged.py)

A verb on device arrays is work enqueued on the device's stream, in order with the kernels before and after
it: when it returns the data need not have moved yet, and nobody has to wait for that but a host that reads.
The two buffers of a verb are on the same side. Messages of the two kinds may overtake each other.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from minitrain.arrays.types import Array
from minitrain.comm.interface import Cart, Comm, Handle, Reduction, World
from minitrain.comm.single import SingleComm


class Transport(Protocol):
    """The verbs of `Comm` that move data, on device arrays. These are C-contiguous and not empty."""

    def all_reduce(self, buffer: Array, op: Reduction) -> None: ...

    def reduce_scatter(self, source: Array, shard: Array) -> None: ...

    def all_gather(self, shard: Array, target: Array) -> None: ...

    def broadcast(self, buffer: Array, root: int) -> None: ...

    def start_send(self, buffer: Array, to: int) -> Handle: ...

    def recv(self, buffer: Array, source: int) -> None: ...


Connect = Callable[[Comm], Transport]
"""Makes the transport of the group that is given by its host communicator. Collective over that group."""


class DeviceComm:
    """Wraps `host`. The transport is made at once, while all members are here: a first message would find but
    two of them.
    """

    def __init__(self, host: Comm, connect: Connect) -> None:
        self._host, self._connect = host, connect
        self.name, self.rank, self.size, self.members = host.name, host.rank, host.size, host.members
        self._transport: Transport = connect(host) if host.size > 1 else SingleComm()

    def all_reduce(self, buffer: Array, op: Reduction = "sum") -> None:
        self._way(buffer).all_reduce(buffer, op)

    def reduce_scatter(self, source: Array, shard: Array) -> None:
        self._way(source, shard).reduce_scatter(source, shard)

    def all_gather(self, shard: Array, target: Array) -> None:
        self._way(target, shard).all_gather(shard, target)

    def broadcast(self, buffer: Array, root: int) -> None:
        self._way(buffer).broadcast(buffer, root)

    def send(self, buffer: Array, to: int) -> None:
        self.start_send(buffer, to).wait()

    def start_send(self, buffer: Array, to: int) -> Handle:
        return self._way(buffer).start_send(buffer, to)

    def recv(self, buffer: Array, source: int) -> None:
        self._way(buffer).recv(buffer, source)

    def barrier(self) -> None:
        self._host.barrier()

    def split(self, color: int | None, name: str) -> Comm:
        return _group(self._host.split(color, name), self._connect)

    def cart(self, dims: Sequence[int]) -> Cart:
        return _DeviceCart(self._host.cart(dims), self._connect)

    def _way(self, whole: Array, shard: Array | None = None) -> Transport:
        """Who moves these."""
        shard = whole if shard is None else shard
        on_host = isinstance(whole, np.ndarray)
        assert isinstance(shard, np.ndarray) == on_host, "one buffer is on the host, the other on the device"
        if on_host:
            return self._host
        contiguous = whole.flags.c_contiguous and shard.flags.c_contiguous
        assert contiguous, "a communication buffer is C-contiguous"
        return self._transport if whole.size else _NOTHING


class DeviceWorld(DeviceComm):
    """The same for all ranks of a job. Collective."""

    def __init__(self, host: World, connect: Connect) -> None:
        super().__init__(host, connect)
        self._world = host

    def abort(self, exit_code: int) -> None:
        self._world.abort(exit_code)


class _DeviceCart:
    """A grid of the host communicator, whose groups take device arrays."""

    def __init__(self, inner: Cart, connect: Connect) -> None:
        self._inner, self._connect = inner, connect
        self.coords = inner.coords

    def sub(self, keep: Sequence[bool], name: str) -> Comm:
        return _group(self._inner.sub(keep, name), self._connect)


def _group(host: Comm, connect: Connect) -> Comm:
    """A group of one (single.py) takes arrays of either kind."""
    return host if host.size == 1 else DeviceComm(host, connect)


class _NoTransport:
    """Moves arrays that have no elements."""

    def all_reduce(self, buffer: Array, op: Reduction) -> None:
        pass

    def reduce_scatter(self, source: Array, shard: Array) -> None:
        pass

    def all_gather(self, shard: Array, target: Array) -> None:
        pass

    def broadcast(self, buffer: Array, root: int) -> None:
        pass

    def start_send(self, buffer: Array, to: int) -> Handle:
        return self

    def recv(self, buffer: Array, source: int) -> None:
        pass

    def wait(self) -> None:
        pass


_NOTHING = _NoTransport()
