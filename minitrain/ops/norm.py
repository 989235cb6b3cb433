"""Normalisation of rows: RMSNorm (Llama) and LayerNorm (GPT-2).

Shapes: N tokens, D model width. `saved` is what the backward needs: the normalised rows x^ and 1/std of each row.
All passes over a block of rows happen while it is in cache.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from minitrain.arrays.blocks import row_blocks
from minitrain.arrays.types import Array


class Normalised(NamedTuple):
    """Rows of unit mean square (and, in LayerNorm, zero mean), and the 1/std that made them so."""

    xhat_ND: Array
    rstd_N: Array


def rms_norm_forward(x_ND: Array, gain_D: Array, eps: float) -> tuple[Array, Normalised]:
    """y = g x^, where x^ = x r and r = 1 / sqrt(mean(x^2) + eps) (Zhang & Sennrich 2019, eq. 4)."""
    y_ND, xhat_ND = np.empty_like(x_ND), np.empty_like(x_ND)
    rstd_N = np.empty_like(x_ND, shape=x_ND.shape[:1])
    for rows in _blocks(x_ND):
        x, xhat, r = x_ND[rows], xhat_ND[rows], rstd_N[rows]
        r[...] = 1 / np.sqrt(np.vecdot(x, x) / x.shape[1] + eps)
        np.multiply(x, r[:, None], out=xhat)
        np.multiply(xhat, gain_D, out=y_ND[rows])
    return y_ND, Normalised(xhat_ND, rstd_N)


def rms_norm_backward(dy_ND: Array, saved: Normalised, gain_D: Array, dgain_D: Array) -> Array:
    """Forward was y = g x^, x^ = x r(x), so now dg += sum_n dy x^ and dx = r (dx^ - x^ mean(dx^ x^)), dx^ = g dy.

    The second term is what a change of x does to its own length: the part of dx^ along x^ is taken out.
    """
    dx_ND = np.empty_like(dy_ND)
    for rows in _blocks(dy_ND):
        dy, xhat, dx = dy_ND[rows], saved.xhat_ND[rows], dx_ND[rows]
        along = np.multiply(dy, xhat)
        dgain_D += along.sum(axis=0)
        mean = np.matmul(along, gain_D) / dy.shape[1]  # of dx^ x^
        np.multiply(dy, gain_D, out=dx)
        dx -= np.multiply(xhat, mean[:, None], out=along)
        dx *= saved.rstd_N[rows, None]
    return dx_ND


def layer_norm_forward(x_ND: Array, gain_D: Array, bias_D: Array, eps: float) -> tuple[Array, Normalised]:
    """y = g x^ + b, where x^ = (x - mean(x)) r, r = 1 / sqrt(var(x) + eps) (Ba, Kiros & Hinton 2016, eq. 4)."""
    y_ND, xhat_ND = np.empty_like(x_ND), np.empty_like(x_ND)
    rstd_N = np.empty_like(x_ND, shape=x_ND.shape[:1])
    for rows in _blocks(x_ND):
        x, xhat, r, y = x_ND[rows], xhat_ND[rows], rstd_N[rows], y_ND[rows]
        np.subtract(x, x.mean(axis=1, keepdims=True), out=xhat)
        r[...] = 1 / np.sqrt(np.vecdot(xhat, xhat) / x.shape[1] + eps)
        xhat *= r[:, None]
        np.multiply(xhat, gain_D, out=y)
        y += bias_D
    return y_ND, Normalised(xhat_ND, rstd_N)


def layer_norm_backward(
    dy_ND: Array, saved: Normalised, gain_D: Array, dgain_D: Array, dbias_D: Array
) -> Array:
    """Forward was y = g x^ + b, x^ = (x - mean(x)) r(x), so now dg += sum_n dy x^, db += sum_n dy and
    dx = r (dx^ - mean(dx^) - x^ mean(dx^ x^)) with dx^ = g dy: as RMSNorm, and the mean taken out once more.
    """
    dx_ND = np.empty_like(dy_ND)
    for rows in _blocks(dy_ND):
        dy, xhat, dx = dy_ND[rows], saved.xhat_ND[rows], dx_ND[rows]
        along = np.multiply(dy, xhat)
        dgain_D += along.sum(axis=0)
        dbias_D += dy.sum(axis=0)
        mean = np.matmul(along, gain_D) / dy.shape[1]  # of dx^ x^
        np.multiply(dy, gain_D, out=dx)
        dx -= dx.mean(axis=1, keepdims=True)
        dx -= np.multiply(xhat, mean[:, None], out=along)
        dx *= saved.rstd_N[rows, None]
    return dx_ND


def _blocks(x_ND: Array) -> Iterator[slice]:
    return row_blocks(x_ND.shape[0], x_ND.shape[1] * x_ND.itemsize)
