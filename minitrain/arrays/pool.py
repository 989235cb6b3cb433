"""Buffers that are borrowed for a while and given back, so that a step allocates no large array twice."""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from minitrain.arrays.device import HOST, Device
from minitrain.arrays.types import Array


class Pool:
    """Keeps the buffers that were given back, by size and dtype. `bytes` counts all it ever made: its
    footprint.
    """

    def __init__(self, device: Device = HOST) -> None:
        self._device = device
        self._free: defaultdict[tuple[int, np.dtype[np.generic]], list[Array]] = defaultdict(list)
        self.bytes = 0

    def take(self, size: int, dtype: np.dtype[np.generic]) -> Array:
        """A vector of undefined contents, until it is given back."""
        free = self._free[size, dtype]
        if free:
            return free.pop()
        buffer: Array = self._device.xp.empty(size, dtype)
        self.bytes += buffer.nbytes
        return buffer

    def give_back(self, buffer: Array) -> None:
        self._free[buffer.size, buffer.dtype].append(buffer)

    @contextmanager
    def borrow(self, size: int, dtype: np.dtype[np.generic]) -> Iterator[Array]:
        """The same for as long as the `with` lasts."""
        buffer = self.take(size, dtype)
        try:
            yield buffer
        finally:
            self.give_back(buffer)
