"""A device without a device: arrays that NumPy cannot touch, a stream that is as late as it may be, and a
communicator that takes NumPy arrays for arrays of the device.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from minitrain.arrays.types import Array, DType
from minitrain.comm.interface import Cart, Comm, Handle, Reduction

POISON = 0x5A  # every byte of memory that nobody has written


class Address(NamedTuple):
    ptr: int


class DeviceArray:
    """What communicators may ask of a CuPy array, and nothing else. `inside` is for tests."""

    def __init__(self, inside: Array) -> None:
        self.inside = inside
        self.dtype, self.shape, self.flags = inside.dtype, inside.shape, inside.flags
        self.size, self.nbytes, self.data = inside.size, inside.nbytes, Address(inside.ctypes.data)

    __array_ufunc__ = None  # NumPy computes nothing with it

    def __setitem__(self, where: Any, values: "DeviceArray") -> None:
        self.inside[where] = values.inside


def device_array(*values: float, dtype: Any = np.float32) -> Any:
    return DeviceArray(np.array(values, dtype))


class LateDevice:
    """Copies happen at `synchronize`, not before: whoever does not wait for them sees it."""

    def __init__(self) -> None:
        self.stream = Address(7)
        self.n_synchronized, self.n_pinned = 0, 0
        self._enqueued: list[Callable[[], None]] = []
        self._pinned: list[Array] = []

    @property
    def idle(self) -> bool:
        return not self._enqueued

    def pinned(self, size: int, dtype: DType) -> Array:
        memory = np.full(size * dtype.itemsize, POISON, np.uint8).view(dtype)
        self._pinned.append(memory)
        self.n_pinned += 1
        return memory

    def copy_to_host(self, source: Any, target: Array) -> None:
        self._copy(source.inside, target, target)

    def copy_to_device(self, source: Array, target: Any) -> None:
        self._copy(source, target.inside, source)

    def synchronize(self) -> None:
        self.n_synchronized += 1
        for action in self._enqueued:
            action()
        self._enqueued.clear()

    def _copy(self, source: Array, target: Array, on_host: Array) -> None:
        assert any(on_host is memory for memory in self._pinned), "the host's side is page-locked"
        assert (source.size, source.dtype) == (target.size, target.dtype)
        assert source.flags.c_contiguous and target.flags.c_contiguous

        def copy() -> None:
            target[...] = source.reshape(target.shape)

        self._enqueued.append(copy)


class OnDevice:
    """Wraps a communicator for both kinds of arrays, and shows it every NumPy array as one of the device. So
    whatever runs on NumPy arrays, a whole training step, runs over the transport.
    """

    def __init__(self, inner: Comm, device: LateDevice) -> None:
        self._inner, self._device = inner, device
        self.name, self.rank, self.size, self.members = inner.name, inner.rank, inner.size, inner.members

    def all_reduce(self, buffer: Array, op: Reduction = "sum") -> None:
        self._inner.all_reduce(_shown(buffer), op)
        self._device.synchronize()

    def reduce_scatter(self, source: Array, shard: Array) -> None:
        self._inner.reduce_scatter(_shown(source), _shown(shard))
        self._device.synchronize()

    def all_gather(self, shard: Array, target: Array) -> None:
        self._inner.all_gather(_shown(shard), _shown(target))
        self._device.synchronize()

    def broadcast(self, buffer: Array, root: int) -> None:
        self._inner.broadcast(_shown(buffer), root)
        self._device.synchronize()

    def send(self, buffer: Array, to: int) -> None:
        self._inner.send(_shown(buffer), to)

    def start_send(self, buffer: Array, to: int) -> Handle:
        return self._inner.start_send(_shown(buffer), to)

    def recv(self, buffer: Array, source: int) -> None:
        self._inner.recv(_shown(buffer), source)
        self._device.synchronize()

    def barrier(self) -> None:
        self._inner.barrier()

    def split(self, color: int | None, name: str) -> Comm:
        return self._group(self._inner.split(color, name))

    def cart(self, dims: Sequence[int]) -> Cart:
        return _OnDeviceCart(self._inner.cart(dims), self)

    def _group(self, inner: Comm) -> Comm:
        return inner if inner.size == 1 else OnDevice(inner, self._device)


class _OnDeviceCart:
    def __init__(self, inner: Cart, parent: OnDevice) -> None:
        self._inner, self._parent, self.coords = inner, parent, inner.coords

    def sub(self, keep: Sequence[bool], name: str) -> Comm:
        return self._parent._group(self._inner.sub(keep, name))


def _shown(buffer: Array) -> Any:
    return DeviceArray(buffer)
