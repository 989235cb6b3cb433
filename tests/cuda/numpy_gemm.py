"""Matrix products by NumPy, for tests of what multiplies matrices rather than of the products."""

import numpy as np

from minitrain.arrays.narrow import wide
from minitrain.ops.cuda.gemm import Gemm
from minitrain.ops.cuda.gemm_layout import layout


class NumpyGemm(Gemm):
    def _multiply(self, product):
        a, b, out, transpose_a, transpose_b, add, scale, bias = product
        layout(a, b, out)  # refuses what the libraries cannot do
        a, b = a.swapaxes(-1, -2) if transpose_a else a, b.swapaxes(-1, -2) if transpose_b else b
        values = np.matmul(wide(a), wide(b))
        values *= scale
        if add:
            values += out
        if bias is not None:
            values += bias
        out[...] = values
