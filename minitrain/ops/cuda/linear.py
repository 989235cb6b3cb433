"""The linear map on a GPU. Formulas, shapes and the meaning of every function are those of `ops/linear.py`.

Each product is one call of `gpu.gemm`, which sums in fp32 (fp64 for fp64) and rounds once, into the type of
its result: what is added, a bias or the gradient so far, takes part before that.

Under fp8 the rounded factors come as bf16, which holds each of their values: the tensor cores then multiply
numbers of 8 bits, at the speed of 16.
"""

import numpy as np

from minitrain.arrays.device import Gpu
from minitrain.arrays.narrow import compute_type
from minitrain.arrays.types import Array
from minitrain.ops.fp8 import Fp8Linear

SOURCE = "ops/cuda/linear.cu"
BAND = 256  # rows whose sums a block makes
COLUMNS = 32  # of a block
THREADS = 256


def linear_forward(
    gpu: Gpu, x_NI: Array, w_OI: Array, bias_O: Array | None = None, fp8: Fp8Linear | None = None
) -> Array:
    """y = x W^T + b, in the type of x."""
    y_NO = np.empty_like(x_NI, shape=(len(x_NI), len(w_OI)))
    x_NI, w_OI = (fp8.x.rounded(x_NI), fp8.w.rounded(w_OI)) if fp8 else (x_NI, w_OI)
    gpu.gemm.product(x_NI, w_OI, y_NO, transpose_b=True, bias=bias_O)
    return y_NO


def linear_wide(gpu: Gpu, x_NI: Array, w_OI: Array, fp8: Fp8Linear | None = None) -> Array:
    """x W^T in the type of the sums."""
    y_NO = np.empty_like(x_NI, shape=(len(x_NI), len(w_OI)), dtype=compute_type(x_NI.dtype))
    x_NI, w_OI = (fp8.x.rounded(x_NI), fp8.w.rounded(w_OI)) if fp8 else (x_NI, w_OI)
    gpu.gemm.product(x_NI, w_OI, y_NO, transpose_b=True)
    return y_NO


def linear_backward(
    gpu: Gpu,
    dy_NO: Array,
    x_NI: Array,
    w_OI: Array,
    dw_OI: Array,
    dbias_O: Array | None = None,
    fp8: Fp8Linear | None = None,
) -> Array:
    """Returns dx = dy W; dW += dy^T x, db += sum_n dy_n, which have the type of dy or of the sums."""
    if dbias_O is not None:
        bias_backward(gpu, dy_NO, dbias_O)
    dx_NI = np.empty_like(dy_NO, shape=x_NI.shape)
    if fp8:
        dy_NO, x_NI, w_OI = fp8.dy.rounded(dy_NO), fp8.x.rounded(x_NI), fp8.w.rounded(w_OI)
    gpu.gemm.product(dy_NO, x_NI, dw_OI, transpose_a=True, add=True)
    gpu.gemm.product(dy_NO, w_OI, dx_NI)
    return dx_NI


def bias_backward(gpu: Gpu, dy_NO: Array, dbias_O: Array) -> None:
    """db += sum_n dy_n."""
    assert dy_NO.flags.c_contiguous and dbias_O.flags.c_contiguous
    N, O = dy_NO.shape
    if N == 0 or O == 0:
        return
    P, blocks = -(-N // BAND), -(-O // COLUMNS)
    partial_PO = np.empty_like(dy_NO, shape=(P, O), dtype=compute_type(dy_NO.dtype))
    types = {"T": dy_NO.dtype, "G": dbias_O.dtype}
    gpu.launch(SOURCE, "bias_backward_bands", types, (blocks, P), THREADS, dy_NO, partial_PO, N, O, BAND)
    gpu.launch(SOURCE, "bias_backward_add", types, blocks, THREADS, partial_PO, dbias_O, P, O)
