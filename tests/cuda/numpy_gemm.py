"""`Gemm` by NumPy, for tests of what multiplies matrices rather than of the products: sums in fp32 or fp64,
and one rounding into `out`.
"""

import numpy as np

from minitrain.arrays.narrow import compute_type, wide


class NumpyGemm:
    """See `minitrain.ops.cuda.gemm.Gemm` for the operations."""

    def product(self, a, b, out, *, transpose_a=False, transpose_b=False, add=False, bias=None):
        assert a.ndim == b.ndim == out.ndim == 2
        assert bias is None or (not add and bias.shape == out.shape[1:] and bias.dtype == out.dtype)
        _multiply(a, b, out, transpose_a, transpose_b, add, bias, 1.0)

    def batched(self, a, b, out, *, transpose_a=False, transpose_b=False, add=False, scale=1.0):
        assert a.ndim == b.ndim == out.ndim
        _multiply(a, b, out, transpose_a, transpose_b, add, None, scale)


def _multiply(a, b, out, transpose_a, transpose_b, add, bias, scale):
    assert a.dtype == b.dtype and out.dtype in (a.dtype, compute_type(a.dtype))
    for x in (a, b, out):
        assert x.size == 0 or x.shape[-1] == 1 or x.strides[-1] == x.itemsize, "rows are not contiguous"
    a, b = a.swapaxes(-1, -2) if transpose_a else a, b.swapaxes(-1, -2) if transpose_b else b
    values = np.matmul(wide(a), wide(b))
    assert values.shape == out.shape
    values *= scale
    if add:
        values += out
    if bias is not None:
        values += bias
    out[...] = values
