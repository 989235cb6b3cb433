"""What is done with whole flat vectors of gradients besides the update."""

import numpy as np

from minitrain.arrays.blocks import all_finite, row_blocks
from minitrain.arrays.device import Device, Gpu
from minitrain.arrays.narrow import wide
from minitrain.arrays.types import Array

NOWHERE = 2**63 - 1  # the place of what there is none of


class VectorOps:
    """On the host."""

    def first_not_finite(self, vector: Array, first: Array) -> None:
        """first <- the place of the first element that is infinite or NaN, if that is less. int64 [1]"""
        if not all_finite(vector):
            first[0] = min(first[0], np.flatnonzero(~np.isfinite(vector))[0])

    def add_squares(self, vector: Array, total: Array) -> None:
        """total <- total + sum of squares. fp64 [1]

        Blocks are added up in fp64: one long product in fp32 would be wrong in its fifth digit.
        """
        for block in row_blocks(vector.size, vector.itemsize):
            g = wide(vector[block])
            total[0] += float(np.dot(g, g))

    def squares_of_rows(self, rows_NK: Array) -> Array:
        """The sum of squares of each row, in fp64. [N]"""
        sums_N = np.empty(len(rows_NK))
        for block in row_blocks(len(rows_NK), rows_NK.shape[1] * sums_N.itemsize):
            g = rows_NK[block].astype(np.float64)
            sums_N[block] = np.vecdot(g, g)
        return sums_N


def vector_ops(device: Device) -> VectorOps:
    if not isinstance(device, Gpu):
        return VectorOps()
    from minitrain.optim.cuda.vectors import CudaVectorOps  # it builds on this file

    return CudaVectorOps(device)
