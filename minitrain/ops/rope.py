"""Rotary position embedding: a query and a key see only the difference of their positions.

Shapes: B sequences, T positions, H heads, K head width, C = K/2 complex components.
Components (2j, 2j+1) of a head are one complex number z_j, so rotation is one complex multiplication.
"""

import numpy as np
from numpy.typing import DTypeLike

from minitrain.arrays.narrow import store, wide
from minitrain.arrays.types import Array


def rope_table(n_positions: int, head_width: int, theta: float, dtype: DTypeLike) -> Array:
    """e^(i t theta^(-2j/K)) at position t for component j (Su et al. 2021, eq. 15, theta = 10000).
    [n_positions, K/2], complex128 for fp64, else complex64.

    Angles are in fp64 whatever the dtype: at position 10^5 an fp32 angle would be wrong in its third decimal.
    """
    frequency_C = theta ** (-np.arange(0, head_width, 2) / head_width)
    angle_TC = np.outer(np.arange(n_positions), frequency_C)
    table_TC: Array = np.exp(1j * angle_TC).astype(np.complex128 if dtype == np.float64 else np.complex64)
    return table_TC


def rope_forward(x_BTHK: Array, table_TC: Array) -> Array:
    """z_j <- z_j e^(i t theta_j), in place on x, which is returned. T may be shorter than the table."""
    values = wide(x_BTHK)
    z_BTHC = values.view(table_TC.dtype)
    z_BTHC *= table_TC[: x_BTHK.shape[1], None, :]
    store(values, x_BTHK)
    return x_BTHK


def rope_backward(dx_BTHK: Array, table_TC: Array) -> Array:
    """Forward was a rotation, so now dx is rotated back: dz_j <- dz_j e^(-i t theta_j), in place on dx."""
    return rope_forward(dx_BTHK, table_TC.conj())
