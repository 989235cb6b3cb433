"""`ops/fp8.py` on a GPU. Scales, maxima and histories of all tensors of a stage lie in three arrays: a step
sends one vector of maxima over the ranks, and the host reads nothing.

A rounded factor is an array of bf16, whose 8 binary digits hold the 4 of E4M3 and the 3 of E5M2, and whose
exponents are those of fp32.
"""

from typing import NamedTuple

import ml_dtypes
import numpy as np

from minitrain.arrays.device import Gpu, put
from minitrain.arrays.threads import THREADS, blocks
from minitrain.arrays.types import Array, DType
from minitrain.ops.fp8 import E4M3, E5M2, HISTORY, Fp8Linear, Fp8Scales, Scaled8

SOURCE = "ops/cuda/fp8.cu"
MOST_BLOCKS = 2048  # all of which note their maximum in one place


class Format(NamedTuple):
    digits: int  # binary ones, behind the first
    lowest: int  # exponent of the smallest numbers that have them all
    top: int  # exponent of the largest number, 1.75 x 2^top


FORMATS = {E4M3: Format(3, -6, 8), E5M2: Format(2, -14, 15)}


class DeviceScaled8:
    """One tensor, as `Scaled8`: that of an index in `DeviceScales`."""

    def __init__(self, scales: "DeviceScales", index: int, dtype: DType) -> None:
        self.dtype = dtype
        self.history = scales.history_nH[index]
        self._gpu, here = scales.gpu, slice(index, index + 1)
        self._amax, self._scale = scales.amax_n[here], scales.scale_n[here]
        self.has_scale = False  # at the first step, without a history, it is that of the array at hand

    def rounded(self, x: Array) -> Array:
        """x8 / s, for x in bf16. Notes max|x|, a NaN as infinite; a NaN stays one."""
        y, types, n_blocks = np.empty_like(x), {"T": x.dtype}, blocks(x.size, x.itemsize, MOST_BLOCKS)
        if x.size == 0:
            return y
        of_blocks = None
        if not self.has_scale:
            of_blocks = np.empty_like(x, shape=n_blocks, dtype=np.uint32)
            self._gpu.launch(SOURCE, "fp8_largest", types, n_blocks, THREADS, x, of_blocks, x.size)
        self._gpu.launch(
            SOURCE, "fp8_round", types, n_blocks, THREADS,
            x, y, self._scale, of_blocks, n_blocks, self._amax, x.size, *FORMATS[self.dtype],
        )  # fmt: skip
        return y

    def restore(self, history: Array) -> None:
        """As it was after the steps of which these, in the host's memory, are the maxima."""
        host = Scaled8(self.dtype)
        host.restore(history)
        put(self.history, host.history)
        put(self._scale, np.array([host.scale], np.float32))
        self.has_scale = True


class DeviceScales:
    """`Fp8Scales` on a GPU."""

    def __init__(self, gpu: Gpu, n_maps: int) -> None:
        dtypes = (E4M3, E4M3, E5M2) * n_maps
        self.gpu, n = gpu, len(dtypes)
        self.amax_n: Array = gpu.xp.zeros(n, np.float32)
        self.scale_n: Array = gpu.xp.zeros(n, np.float32)
        self.history_nH = gpu.xp.zeros((n, HISTORY), np.float32)
        self._top_n = gpu.to_device(np.array([FORMATS[dtype].top for dtype in dtypes], np.int64))
        self._tensors = [DeviceScaled8(self, i, dtype) for i, dtype in enumerate(dtypes)]
        self.maps = [Fp8Linear(*self._tensors[i : i + 3]) for i in range(0, n, 3)]

    def seen(self) -> Array:
        """Not a copy: what is added up over ranks here is what `end_step` takes."""
        return self.amax_n

    def end_step(self, amax_n: Array) -> None:
        """`amax_n` are zeros again."""
        n = len(self._tensors)
        if n:
            self.gpu.launch(
                SOURCE, "fp8_end_step", {"T": np.dtype(ml_dtypes.bfloat16)}, -(-n // THREADS), THREADS,
                amax_n, self.history_nH, self.scale_n, self._top_n, n, HISTORY,
            )  # fmt: skip
        for tensor in self._tensors:
            tensor.has_scale = True

    def forget(self) -> None:
        self.amax_n.fill(0)


def make_scales(gpu: Gpu, n_maps: int) -> Fp8Scales:
    return DeviceScales(gpu, n_maps)
