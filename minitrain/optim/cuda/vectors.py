"""`optim/vectors.py` on a GPU. Sums have one order for vectors of one length."""

import numpy as np

from minitrain.arrays.device import Gpu
from minitrain.arrays.types import Array
from minitrain.optim.vectors import VectorOps

SOURCE = "optim/cuda/vectors.cu"
THREADS = 256
PER_THREAD = 16  # bytes
MOST_BLOCKS = 2048  # twice what a large GPU has at a time


class CudaVectorOps(VectorOps):
    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu

    def first_not_finite(self, vector: Array, first: Array) -> None:
        if n := vector.size:
            self._launch("first_not_finite", vector, _blocks(vector), vector, first, n)

    def add_squares(self, vector: Array, total: Array) -> None:
        if n := vector.size:
            blocks = _blocks(vector)
            parts = np.empty_like(total, shape=blocks)
            self._launch("squares_of_parts", vector, blocks, vector, parts, n)
            self._launch("add_parts", vector, 1, parts, total, blocks)

    def squares_of_rows(self, rows_NK: Array) -> Array:
        N, K = rows_NK.shape
        sums_N = np.empty_like(rows_NK, shape=N, dtype=np.float64)
        if N:
            blocks = min(-(-N * 32 // THREADS), MOST_BLOCKS)
            self._launch("squares_of_rows", rows_NK, blocks, rows_NK, sums_N, N, K)
        return sums_N

    def _launch(self, kernel: str, x: Array, blocks: int, *args: Array | int) -> None:
        self._gpu.launch(SOURCE, kernel, {"G": x.dtype}, blocks, THREADS, *args)


def _blocks(vector: Array) -> int:
    return min(-(-vector.nbytes // (PER_THREAD * THREADS)), MOST_BLOCKS)
