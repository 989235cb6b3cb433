"""Floats of 16 bits: kept narrow, computed wide.

An array of fp16 or bf16 is memory and traffic; arithmetic happens in fp32. An operation therefore reads
with `wide`, computes, and rounds once where it stores, as a GPU's kernel does: to the nearest value of the
type, of two equally near ones to the even one. For fp32 and fp64 all of these do nothing and copy nothing.
"""

import numpy as np

from minitrain.arrays.types import Array


def compute_type(dtype: np.dtype[np.generic]) -> np.dtype[np.generic]:
    """The type in which values stored as `dtype` are computed: fp32 for 16 bits, else the type itself."""
    return np.dtype(np.float32) if dtype.itemsize <= 2 else dtype


def wide(x: Array) -> Array:
    """The values in the type of computation: an fp32 copy of a narrow array, `x` itself of any other."""
    return x.astype(compute_type(x.dtype), copy=False)


def narrow(x: Array, dtype: np.dtype[np.generic]) -> Array:
    """The values rounded to `dtype`: a copy, or `x` itself where it has that type."""
    return x.astype(dtype, copy=False)


def scratch(x: Array) -> Array:
    """Where to compute what `store` then puts into `x`: `x` itself, or an fp32 array for a narrow one."""
    return x if compute_type(x.dtype) == x.dtype else np.empty_like(x, dtype=np.float32, order="C")


def store(values: Array, x: Array) -> None:
    """x <- values, rounded once. Nothing to do if they were computed in `x` itself."""
    if values is not x:
        x[...] = values
