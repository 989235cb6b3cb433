"""Sums and maxima of rows, the way that is fast for NumPy, or CuPy's only way."""

import numpy as np

from minitrain.arrays.types import Array


def row_max(x: Array) -> Array:
    """The largest of the last axis, which stays, of length 1."""
    if isinstance(x, np.ndarray):
        most: Array = x.max(axis=-1, keepdims=True, initial=-np.inf)  # 1.6 times as fast as without `initial`
        return most
    return x.max(axis=-1, keepdims=True)


def row_sum(x: Array) -> Array:
    """The sum over the last axis."""
    if isinstance(x, np.ndarray):
        sums: Array = np.matmul(x, np.ones_like(x, shape=x.shape[-1]))  # several times as fast as `sum`
        return sums
    return x.sum(axis=-1)


def row_dot(x: Array, y: Array) -> Array:
    """The sum over the last axis of x y."""
    if isinstance(x, np.ndarray):
        dots: Array = np.vecdot(x, y)
        return dots
    return (x * y).sum(axis=-1)
