"""`optim/vectors.py` on a GPU. Sums have one order for vectors of one length."""

import numpy as np

from minitrain.arrays.device import Gpu
from minitrain.arrays.threads import THREADS, blocks
from minitrain.arrays.types import Array
from minitrain.optim.vectors import VectorOps

SOURCE = "optim/cuda/vectors.cu"
MOST_PARTS = 2048  # twice the blocks that a large GPU has at a time


class CudaVectorOps(VectorOps):
    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu

    def first_not_finite(self, vector: Array, first: Array) -> None:
        if n := vector.size:
            self._launch("first_not_finite", vector, _parts(vector), vector, first, n)

    def add_squares(self, vector: Array, total: Array) -> None:
        if n := vector.size:
            n_parts = _parts(vector)
            parts = np.empty_like(total, shape=n_parts)
            self._launch("squares_of_parts", vector, n_parts, vector, parts, n)
            self._launch("add_parts", vector, 1, parts, total, n_parts)

    def squares_of_rows(self, rows_NK: Array) -> Array:
        N, K = rows_NK.shape
        sums_N = np.empty_like(rows_NK, shape=N, dtype=np.float64)
        if N:
            n_blocks = min(-(-N * 32 // THREADS), MOST_PARTS)
            self._launch("squares_of_rows", rows_NK, n_blocks, rows_NK, sums_N, N, K)
        return sums_N

    def _launch(self, kernel: str, x: Array, n_blocks: int, *args: Array | int) -> None:
        self._gpu.launch(SOURCE, kernel, {"G": x.dtype}, n_blocks, THREADS, *args)


def _parts(vector: Array) -> int:
    return blocks(vector.size, vector.itemsize, MOST_PARTS)
