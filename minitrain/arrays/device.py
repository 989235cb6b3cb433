"""Where the arrays of a rank live, and how kernels are started there.

`Device` is all that the package asks of a place for arrays. NumPy's, in the host's memory, is here; that of a
GPU is in `cupy_device.py`, the tests' emulator of one in `tests/cuda/emulator.py`.
"""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np

from minitrain.arrays.types import Array, DType


class Device(Protocol):
    """A place for arrays. `xp` is the module that makes them and computes with them, NumPy or CuPy."""

    xp: Any

    def to_device(self, x: Array) -> Array:
        """The host's array in the memory of the device: a copy, or `x` itself where there is one memory."""


@runtime_checkable
class Gpu(Device, Protocol):
    """A device that works by itself, at its own time: what is started on it is done in order, later."""

    gemm: Any  # a Gemm (ops/cuda/gemm.py)

    def synchronize(self) -> None:
        """Returns when all that was started has been done."""

    def launch(
        self,
        source: str,
        kernel: str,
        types: Mapping[str, DType | int],
        blocks: int | tuple[int, ...],
        threads: int,
        *args: Array | int | float | None,
    ) -> None:
        """Starts `kernel` of a source file of the package on `blocks` times `threads` threads.

        `types` says what the names T, G, ... of the source stand for. Every argument takes 8 bytes: an array
        is its address, None no address, a whole number a `long long`, any other a `double`.
        """

    def start_reading(self, x: Array) -> "Reading":
        """Starts to copy a small array to the host."""


class Reading(Protocol):
    """A copy to the host that is under way."""

    def wait(self) -> Array:
        """The host's array."""


class NumpyDevice:
    """The host itself."""

    xp: Any = np

    def to_device(self, x: Array) -> Array:
        return x


HOST = NumpyDevice()


def is_array(x: Any) -> bool:
    """Whether it is one that `on_host` takes. CuPy is not imported for that."""
    return isinstance(x, np.ndarray) or (hasattr(x, "get") and hasattr(x, "nbytes"))


def on_host(x: Array) -> Array:
    """The values as a NumPy array: `x` itself, or a copy of what a GPU holds, for which the host waits."""
    if isinstance(x, np.ndarray):
        return x
    values: Array = x.get()
    return values


def put(target: Array, values: Array) -> None:
    """target[...] <- an array of the host, whatever memory `target` is in, rounded to its type.

    On a GPU `target` must be contiguous.
    """
    if isinstance(target, np.ndarray):
        target[...] = values
    else:
        target.set(np.ascontiguousarray(values, target.dtype).reshape(target.shape))
