"""The linear map, y = x W^T + b: every matrix of the transformer.

Shapes: N tokens, I inputs, O outputs. Weights are [outputs, inputs]: a row of W makes one output.
"""

import numpy as np

from minitrain.arrays.types import Array


def linear_forward(x_NI: Array, w_OI: Array, bias_O: Array | None = None) -> Array:
    """y_no = sum_i x_ni w_oi + b_o. A fresh C-contiguous array [N, O]."""
    y_NO: Array = np.matmul(x_NI, w_OI.T)
    if bias_O is not None:
        y_NO += bias_O
    return y_NO


def linear_backward(
    dy_NO: Array, x_NI: Array, w_OI: Array, dw_OI: Array, dbias_O: Array | None = None
) -> Array:
    """Forward was y = x W^T + b, so now dx = dy W, dW += dy^T x, db += sum_n dy_n. Returns dx [N, I]."""
    dw_OI += np.matmul(dy_NO.T, x_NI)
    if dbias_O is not None:
        dbias_O += dy_NO.sum(axis=0)
    dx_NI: Array = np.matmul(dy_NO, w_OI)
    return dx_NI
