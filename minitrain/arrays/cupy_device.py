"""The GPU of this rank, by CuPy. It is imported here, in comm/nccl.py for NCCL, and in ops/cuda for cuBLAS.

CuPy allocates, compiles kernels, keeps the stream and the events. What is computed is ours and cuBLAS's.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any, NamedTuple

import cupy
import numpy as np

from minitrain.arrays.device import Reading
from minitrain.arrays.kernels import INCLUDED, cuda_name, kernel_text, options
from minitrain.arrays.types import Array, DType


class CupyDevice:
    """One GPU of this host, which becomes the current one of the process."""

    xp: Any = cupy

    def __init__(self, index: int) -> None:
        self.index = index
        cupy.cuda.Device(index).use()
        self.stream = cupy.cuda.get_current_stream()
        self.gemm: Any = None  # ops/cuda/gemm.py, which stands above this room: backend.py puts it here

    def to_device(self, x: Array) -> Array:
        """By way of pinned memory of CuPy's, so that the host need not wait."""
        copy: Array = cupy.asarray(x)
        return copy

    def synchronize(self) -> None:
        self.stream.synchronize()

    def pinned(self, size: int, dtype: DType) -> Array:
        """A vector in page-locked memory of the host, of undefined contents."""
        return np.frombuffer(cupy.cuda.alloc_pinned_memory(size * dtype.itemsize), dtype, size)

    def copy_to_host(self, source: Array, target: Array) -> None:
        """Starts to copy a device array into a pinned one."""
        memory: Any = source.data
        memory.copy_to_host_async(target.ctypes.data, source.nbytes, self.stream)

    def copy_to_device(self, source: Array, target: Array) -> None:
        """Starts to copy a pinned array into a device array."""
        memory: Any = target.data
        memory.copy_from_host_async(source.ctypes.data, source.nbytes, self.stream)

    def launch(
        self,
        source: str,
        kernel: str,
        types: Mapping[str, DType | int],
        blocks: int | tuple[int, ...],
        threads: int,
        *args: Array | int | float | None,
    ) -> None:
        names = tuple((name, cuda_name(value)) for name, value in types.items())
        grid = (blocks,) if isinstance(blocks, int) else blocks
        words = tuple(np.uint64(0) if argument is None else argument for argument in args)
        _kernel(source, names, kernel)(grid, (threads,), words)

    def start_reading(self, x: Array) -> Reading:
        target = self.pinned(x.size, x.dtype)
        self.copy_to_host(x, target)
        event = cupy.cuda.Event(block=True, disable_timing=True)
        event.record(self.stream)
        return _Reading(target, event, x)

    def mark(self) -> "Mark":
        """Marks the place that the stream has come to."""
        event = cupy.cuda.Event(disable_timing=True)
        event.record(self.stream)
        return Mark(self.index, event)


class Mark(NamedTuple):
    """A place in a stream."""

    device: int
    event: Any

    def passed(self) -> bool:
        """Whether the GPU has done all that was before it, or has failed, of which its user will tell.

        For any thread: one that names no device would take up memory on device 0.
        """
        try:
            cupy.cuda.Device(self.device).use()
            return bool(self.event.done)
        except cupy.cuda.runtime.CUDARuntimeError:
            return True


class _Reading(NamedTuple):
    target: Array
    event: Any
    source: Array  # is not to be freed before it is read

    def wait(self) -> Array:
        self.event.synchronize()
        return self.target


@cache
def _kernel(source: str, names: tuple[tuple[str, str], ...], kernel: str) -> Any:
    return _module(source, names).get_function(kernel)


@cache
def _module(source: str, names: tuple[tuple[str, str], ...]) -> Any:
    """Compiled by NVRTC for the GPU at hand, or taken from CuPy's cache on disk."""
    text = kernel_text(source, dict(names))
    return cupy.RawModule(code=text, options=(f"-I{INCLUDED}", "-std=c++17", *options(text)))


def n_devices() -> int:
    """GPUs that this process sees; 0 without a driver."""
    try:
        return int(cupy.cuda.runtime.getDeviceCount())
    except cupy.cuda.runtime.CUDARuntimeError:
        return 0


class Card(NamedTuple):
    name: str
    place: str  # on the bus of its host: no other GPU has it


def describe(index: int) -> Card:
    """Of a GPU."""
    name = cupy.cuda.runtime.getDeviceProperties(index)["name"].decode()
    return Card(name, cupy.cuda.runtime.deviceGetPCIBusId(index))
