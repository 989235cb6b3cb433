"""The kernels on a real GPU, for tests that give them NumPy's arrays: what the emulator does, done there.

Each launch copies what it is given to the GPU with guards of 0xFF bytes around, and back.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from cuda.guarded import Guarded, Span

from minitrain.arrays.device import Gpu, Reading, on_host


class Card:
    """A `Gpu` whose arrays are NumPy's; `gpu` computes."""

    xp = np

    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu
        self.gemm = _Gemm(gpu)
        self.launches = 0

    def to_device(self, x: np.ndarray) -> np.ndarray:
        return x.copy()

    def synchronize(self) -> None:
        self._gpu.synchronize()

    def launch(
        self,
        source: str,
        kernel: str,
        types: Mapping[str, np.dtype | int],
        blocks: int | tuple[int, ...],
        threads: int,
        *args: np.ndarray | int | float | None,
    ) -> None:
        self.launches += 1
        guarded = Guarded([a for a in args if isinstance(a, np.ndarray)])
        there = [_Copy(self._gpu, span) for span in guarded.spans]

        def word(a: Any) -> Any:
            if not isinstance(a, np.ndarray):
                return a
            if a.size == 0:
                return None
            i, offset = guarded.place(a)
            return np.uint64(there[i].address + offset)

        self._gpu.launch(source, kernel, types, blocks, threads, *map(word, args))
        for copy in there:
            copy.read()
        guarded.put_back(kernel)

    def start_reading(self, x: np.ndarray) -> Reading:
        return self._gpu.start_reading(self._gpu.to_device(x))


class _Copy:
    """Of a buffer on the GPU, where its arrays lie at the same place within 64 bytes."""

    def __init__(self, gpu: Gpu, span: Span) -> None:
        self._buffer = span.buffer
        self._before = (span.start - span.offset) % 64  # the GPU's own addresses are multiples of 256
        padded = np.full(self._before + span.buffer.size, 0xFF, np.uint8)
        padded[self._before :] = span.buffer
        self._array: Any = gpu.to_device(padded)

    @property
    def address(self) -> int:
        """Of the buffer's first byte."""
        return int(self._array.data.ptr) + self._before

    def read(self) -> None:
        """The buffer <- what is on the GPU."""
        self._buffer[:] = on_host(self._array)[self._before :]


class _Gemm:
    """Products of whole arrays, as they lie in NumPy's memory is not shown here but in test_card.py."""

    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu

    def product(self, a: Any, b: Any, out: Any, bias: Any = None, **how: Any) -> None:
        there = self._gpu.to_device(np.ascontiguousarray(out))
        put = [self._gpu.to_device(np.ascontiguousarray(x)) for x in (a, b)]
        self._gpu.gemm.product(*put, there, bias=None if bias is None else self._gpu.to_device(bias), **how)
        out[...] = on_host(there)

    def batched(self, a: Any, b: Any, out: Any, **how: Any) -> None:
        there = self._gpu.to_device(np.ascontiguousarray(out))
        self._gpu.gemm.batched(*(self._gpu.to_device(np.ascontiguousarray(x)) for x in (a, b)), there, **how)
        out[...] = on_host(there)
