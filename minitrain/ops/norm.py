"""Normalisation of rows: RMSNorm (Llama) and LayerNorm (GPT-2).

Shapes: N tokens, D model width. All passes over a block of rows happen while it is in cache. Sums along rows
and columns are products with a vector: BLAS adds up short rows several times faster than `sum`.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from minitrain.arrays.blocks import row_blocks
from minitrain.arrays.narrow import compute_type, scratch, store, wide
from minitrain.arrays.types import Array


class Normalised(NamedTuple):
    """The normalised rows x^, and the reciprocal standard deviation r, in fp32 or fp64, that made them so."""

    xhat_ND: Array
    r_N: Array


def rms_norm_forward(
    x_ND: Array, gain_D: Array, eps: float, residual_ND: Array | None = None
) -> tuple[Array, Normalised]:
    """y = g x^, where x^ = x r and r = 1 / sqrt(mean(x^2) + eps) (Zhang & Sennrich 2019, eq. 4).

    With a residual, x <- x + residual first, in place.
    """
    if residual_ND is not None:
        x_ND += residual_ND
    y_ND, xhat_ND = np.empty_like(x_ND), np.empty_like(x_ND)
    r_N, gain_D = _row_of(x_ND, len(x_ND)), wide(gain_D)
    for rows in _blocks(x_ND):
        x, xhat, y = wide(x_ND[rows]), scratch(xhat_ND[rows]), scratch(y_ND[rows])
        r_N[rows] = 1 / np.sqrt(np.vecdot(x, x) / x.shape[1] + eps)
        np.multiply(x, r_N[rows, None], out=xhat)
        np.multiply(xhat, gain_D, out=y)
        store(xhat, xhat_ND[rows])
        store(y, y_ND[rows])
    return y_ND, Normalised(xhat_ND, r_N)


def rms_norm_backward(
    dy_ND: Array, saved: Normalised, gain_D: Array, dgain_D: Array, dresidual_ND: Array | None = None
) -> Array:
    """Forward was y = g x^, x^ = x r(x), so now dg += sum_n dy x^ and, with dx^ = g dy,
    dx = r (dx^ - x^ mean(dx^ x^)): x^ keeps its length, so what pulls along x^ has no effect (but for eps).

    x itself may have gone on as the residual: what came back that way is added, dx += dresidual.
    """
    dx_ND = np.empty_like(dy_ND)
    gain_D, sum_D = wide(gain_D), _row_of(dy_ND, len(gain_D))
    for rows in _blocks(dy_ND):
        dy, xhat, dx = wide(dy_ND[rows]), wide(saved.xhat_ND[rows]), scratch(dx_ND[rows])
        product = np.multiply(dy, xhat)
        sum_D += _sum_of_rows(product)
        mean = np.matmul(product, gain_D) / dy.shape[1]  # of dx^ x^
        np.multiply(dy, gain_D, out=dx)
        dx -= np.multiply(xhat, mean[:, None], out=product)
        dx *= saved.r_N[rows, None]
        store(dx, dx_ND[rows])
    dgain_D += sum_D
    if dresidual_ND is not None:
        dx_ND += dresidual_ND
    return dx_ND


def layer_norm_forward(
    x_ND: Array, gain_D: Array, bias_D: Array, eps: float, residual_ND: Array | None = None
) -> tuple[Array, Normalised]:
    """y = g x^ + b, x^ = (x - mean(x)) r, r = 1 / sqrt(var(x) + eps) (Ba, Kiros & Hinton 2016, eq. 4).

    With a residual, x <- x + residual first, in place.
    """
    if residual_ND is not None:
        x_ND += residual_ND
    y_ND, xhat_ND = np.empty_like(x_ND), np.empty_like(x_ND)
    r_N, gain_D, bias_D = _row_of(x_ND, len(x_ND)), wide(gain_D), wide(bias_D)
    ones_D = np.ones_like(gain_D)
    for rows in _blocks(x_ND):
        x, xhat, y = wide(x_ND[rows]), scratch(xhat_ND[rows]), scratch(y_ND[rows])
        mean = np.matmul(x, ones_D) / x.shape[1]
        np.subtract(x, mean[:, None], out=xhat)
        r_N[rows] = 1 / np.sqrt(np.vecdot(xhat, xhat) / x.shape[1] + eps)
        xhat *= r_N[rows, None]
        np.multiply(xhat, gain_D, out=y)
        y += bias_D
        store(xhat, xhat_ND[rows])
        store(y, y_ND[rows])
    return y_ND, Normalised(xhat_ND, r_N)


def layer_norm_backward(
    dy_ND: Array,
    saved: Normalised,
    gain_D: Array,
    dgain_D: Array,
    dbias_D: Array,
    dresidual_ND: Array | None = None,
) -> Array:
    """Forward was y = g x^ + b, x^ = (x - mean(x)) r(x), so now dg += sum_n dy x^, db += sum_n dy and, with
    dx^ = g dy, dx = r (dx^ - mean(dx^) - x^ mean(dx^ x^)): neither a shift of x nor its length has an effect.

    What came back by the residual is added: dx += dresidual.
    """
    dx_ND = np.empty_like(dy_ND)
    gain_D, sums_2D = wide(gain_D), np.zeros((2, len(gain_D)), compute_type(dy_ND.dtype))
    for rows in _blocks(dy_ND):
        dy, xhat, dx = wide(dy_ND[rows]), wide(saved.xhat_ND[rows]), scratch(dx_ND[rows])
        product = np.multiply(dy, xhat)
        sums_2D[0] += _sum_of_rows(product)
        sums_2D[1] += _sum_of_rows(dy)
        mean = np.matmul(product, gain_D) / dy.shape[1]  # of dx^ x^
        np.multiply(dy, gain_D, out=dx)
        dx -= (np.matmul(dy, gain_D) / dy.shape[1])[:, None]
        dx -= np.multiply(xhat, mean[:, None], out=product)
        dx *= saved.r_N[rows, None]
        store(dx, dx_ND[rows])
    dgain_D += sums_2D[0]
    dbias_D += sums_2D[1]
    if dresidual_ND is not None:
        dx_ND += dresidual_ND
    return dx_ND


def _row_of(x_ND: Array, n: int) -> Array:
    """Zeros [n] in the type of computation."""
    return np.zeros(n, compute_type(x_ND.dtype))


def _blocks(x_ND: Array) -> Iterator[slice]:
    return row_blocks(len(x_ND), x_ND[0].nbytes)


def _sum_of_rows(x_ND: Array) -> Array:
    sum_D: Array = np.matmul(np.ones_like(x_ND, shape=len(x_ND)), x_ND)
    return sum_D
