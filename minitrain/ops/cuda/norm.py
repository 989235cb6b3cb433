"""`ops/norm.py` on a GPU. Saved is the input itself instead of x^, with mean (LayerNorm) and r of each row.

Shapes: N tokens, D model width.
"""

from typing import NamedTuple

import numpy as np

from minitrain.arrays.device import Gpu
from minitrain.arrays.narrow import compute_type
from minitrain.arrays.types import Array

SOURCE = "ops/cuda/norm.cu"
BAND = 256  # rows that one block adds up for the gradients of gain and bias


class Rows(NamedTuple):
    """The input, in its own type, and what normalised it, in the type of computation."""

    x_ND: Array
    mean_N: Array | None
    r_N: Array


def rms_norm_forward(
    gpu: Gpu, x_ND: Array, gain_D: Array, eps: float, residual_ND: Array | None = None
) -> tuple[Array, Rows]:
    return _forward(gpu, x_ND, gain_D, None, eps, residual_ND)


def rms_norm_backward(
    gpu: Gpu, dy_ND: Array, saved: Rows, gain_D: Array, dgain_D: Array, dresidual_ND: Array | None = None
) -> Array:
    return _backward(gpu, dy_ND, saved, gain_D, dgain_D, None, dresidual_ND)


def layer_norm_forward(
    gpu: Gpu, x_ND: Array, gain_D: Array, bias_D: Array, eps: float, residual_ND: Array | None = None
) -> tuple[Array, Rows]:
    return _forward(gpu, x_ND, gain_D, bias_D, eps, residual_ND)


def layer_norm_backward(
    gpu: Gpu,
    dy_ND: Array,
    saved: Rows,
    gain_D: Array,
    dgain_D: Array,
    dbias_D: Array,
    dresidual_ND: Array | None = None,
) -> Array:
    return _backward(gpu, dy_ND, saved, gain_D, dgain_D, dbias_D, dresidual_ND)


def _forward(
    gpu: Gpu, x_ND: Array, gain_D: Array, bias_D: Array | None, eps: float, residual_ND: Array | None
) -> tuple[Array, Rows]:
    """LayerNorm where there is a bias, else RMSNorm."""
    N, D = x_ND.shape
    y_ND = np.empty_like(x_ND)
    r_N, mean_N = (np.empty_like(x_ND, shape=N, dtype=compute_type(x_ND.dtype)) for _ in range(2))
    saved = Rows(x_ND, None if bias_D is None else mean_N, r_N)
    if N:
        gpu.launch(
            SOURCE, "norm_forward", {"T": x_ND.dtype, "G": x_ND.dtype}, N, _threads(D),
            x_ND, residual_ND, gain_D, bias_D, y_ND, saved.mean_N, r_N, D, eps,
        )  # fmt: skip
    return y_ND, saved


def _backward(
    gpu: Gpu,
    dy_ND: Array,
    saved: Rows,
    gain_D: Array,
    dgain_D: Array,
    dbias_D: Array | None,
    dresidual_ND: Array | None,
) -> Array:
    x_ND, mean_N, r_N = saved
    N, D = dy_ND.shape
    dx_ND, types = np.empty_like(dy_ND), {"T": dy_ND.dtype, "G": dgain_D.dtype}
    if N:
        n_bands = -(-N // BAND)
        bands = np.empty_like(r_N, shape=(n_bands, 2, D))
        gpu.launch(
            SOURCE, "norm_backward", types, N, _threads(D),
            dy_ND, x_ND, mean_N, r_N, gain_D, dresidual_ND, dx_ND, D,
        )  # fmt: skip
        gpu.launch(
            SOURCE, "norm_backward_bands", types, (-(-D // 32), n_bands), 256,
            dy_ND, x_ND, mean_N, r_N, bands, N, D, BAND,
        )  # fmt: skip
        gpu.launch(
            SOURCE, "norm_backward_gains", types, -(-D // 128), 128, bands, dgain_D, dbias_D, n_bands, D
        )
    return dx_ND


def _threads(D: int) -> int:
    """Of the block of a row: a few elements for each."""
    return min(512, -(-D // 128) * 32)
