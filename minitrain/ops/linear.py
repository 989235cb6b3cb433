"""The linear map, y = x W^T + b: every matrix of the transformer.

Shapes: N tokens, I inputs, O outputs. Weights are [outputs, inputs]: a row of W makes one output.
"""

import numpy as np

from minitrain.arrays.narrow import narrow, wide
from minitrain.arrays.types import Array
from minitrain.ops.fp8 import Fp8Linear


def linear_forward(
    x_NI: Array, w_OI: Array, bias_O: Array | None = None, fp8: Fp8Linear | None = None
) -> Array:
    """y_no = sum_i x_ni w_oi + b_o, summed in fp32 or fp64. A fresh C-contiguous array [N, O], of x's type.

    With `fp8` the factors are first rounded to E4M3.
    """
    y_NO = linear_wide(x_NI, w_OI, fp8)
    if bias_O is not None:
        y_NO += bias_O
    return narrow(y_NO, x_NI.dtype)


def linear_wide(x_NI: Array, w_OI: Array, fp8: Fp8Linear | None = None) -> Array:
    """The product x W^T as it is summed, not yet rounded to the type of x."""
    x_NI, w_OI = (fp8.x.rounded(x_NI), fp8.w.rounded(w_OI)) if fp8 else (wide(x_NI), wide(w_OI))
    y_NO: Array = np.matmul(x_NI, w_OI.T)
    return y_NO


def linear_backward(
    dy_NO: Array,
    x_NI: Array,
    w_OI: Array,
    dw_OI: Array,
    dbias_O: Array | None = None,
    fp8: Fp8Linear | None = None,
) -> Array:
    """Forward was y = x W^T + b, so now dx = dy W, dW += dy^T x, db += sum_n dy_n. Returns dx [N, I].

    dW and db are summed in fp32 or fp64 and rounded when they are added. With `fp8` all three factors are
    rounded: x and W as in the forward, dy to E5M2.
    """
    if dbias_O is not None:
        bias_backward(dy_NO, dbias_O)
    dtype = dy_NO.dtype
    if fp8:
        dy_NO, x_NI, w_OI = fp8.dy.rounded(dy_NO), fp8.x.rounded(x_NI), fp8.w.rounded(w_OI)
    else:
        dy_NO, x_NI, w_OI = wide(dy_NO), wide(x_NI), wide(w_OI)
    dw_OI += np.matmul(dy_NO.T, x_NI)
    return narrow(np.matmul(dy_NO, w_OI), dtype)


def bias_backward(dy_NO: Array, dbias_O: Array) -> None:
    """Forward was y + b for every row, so now db += sum_n dy_n."""
    dbias_O += wide(dy_NO).sum(axis=0)
