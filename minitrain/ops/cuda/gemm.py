"""Matrix products on a GPU: one small interface, and what its implementations, gemm_ex.py and cublaslt.py,
have in common.

Arrays are row-major, NVIDIA's libraries read memory column by column. The memory of a row-major X [R, C],
whose rows are `ld` elements apart, is to them the matrix X^T [C, R] with leading dimension `ld`. And

    out = op(a) op(b)     <=>     out^T = op(b)^T op(a)^T

so a library is asked for an N x M product of b's memory by a's, in this order, each with the transposition
that was asked for: b's memory is b^T to it, hence CUBLAS_OP_N where op(b) = b, and CUBLAS_OP_T where
op(b) = b^T. Nothing is copied, and a view of rows or of columns of a larger array is as good as a whole one.

Shapes: M rows and N columns of `out`, K terms in each of its sums.
"""

from abc import ABC, abstractmethod
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from minitrain.arrays.narrow import compute_type
from minitrain.arrays.types import Array

# cudaDataType_t: CUDA_R_32F, CUDA_R_64F, CUDA_R_16F, CUDA_R_16BF
CUDA_TYPE = {"float32": 0, "float64": 1, "float16": 2, "bfloat16": 14}
# cublasComputeType_t, by the type of the sums: CUBLAS_COMPUTE_32F (which is not TF32), CUBLAS_COMPUTE_64F
COMPUTE_TYPE = {"float32": 68, "float64": 70}


class Product(NamedTuple):
    """out = scale op(a) op(b), plus out with `add`, plus a bias in every row."""

    a: Array
    b: Array
    out: Array
    transpose_a: bool
    transpose_b: bool
    add: bool
    scale: float
    bias: Array | None


class Gemm(ABC):
    """Products of matrices. The elements of a row are neighbours; rows, and matrices, may lie apart.

    a and b have one type; `out` has it too, or that of the sums: fp32 for 16 bits, else the type itself.
    Whatever is added is added to the sums, which are rounded once, into `out`. Without `add`, what is in
    `out` is not read. Where K is 0, the product is 0.
    """

    def product(
        self,
        a: Array,
        b: Array,
        out: Array,
        *,
        transpose_a: bool = False,
        transpose_b: bool = False,
        add: bool = False,
        bias: Array | None = None,
    ) -> None:
        """out_MN = op(a)_MK op(b)_KN; with `add`, out_MN + that; with a bias of out's type, bias_N + that."""
        assert out.ndim == 2
        if bias is not None:
            assert not add and bias.dtype == out.dtype and bias.shape == out.shape[1:]
            assert bias.flags.c_contiguous
        if is_product(a, b, out, transpose_a, transpose_b):
            self._multiply(Product(a, b, out, transpose_a, transpose_b, add, 1.0, bias))
        elif not add:
            out[...] = 0 if bias is None else bias

    def batched(
        self,
        a: Array,
        b: Array,
        out: Array,
        *,
        transpose_a: bool = False,
        transpose_b: bool = False,
        add: bool = False,
        scale: float = 1.0,
    ) -> None:
        """out[..., M, N] = scale op(a[..., :, :]) op(b[..., :, :]); with `add`, out + that.

        The leading dimensions of a and b are those of `out`, or 1 where one matrix serves all of `out`. The
        longest run of matrices at equal distances is one call of the library, others repeat it.
        """
        if is_product(a, b, out, transpose_a, transpose_b):
            self._multiply(Product(a, b, out, transpose_a, transpose_b, add, scale, None))
        elif not add:
            out[...] = 0

    @abstractmethod
    def _multiply(self, product: Product) -> None:
        """Of arrays that are not empty."""


def is_product(a: Array, b: Array, out: Array, transpose_a: bool, transpose_b: bool) -> bool:
    """False where nothing is to be multiplied, which the libraries refuse. What cannot be is an error."""
    M, K = a.shape[-2:] if not transpose_a else a.shape[:-3:-1]
    K_b, N = b.shape[-2:] if not transpose_b else b.shape[:-3:-1]
    assert a.ndim == b.ndim == out.ndim, (a.shape, b.shape, out.shape)
    assert K == K_b and out.shape[-2:] == (M, N), (a.shape, b.shape, out.shape)
    assert a.dtype == b.dtype and out.dtype in (a.dtype, compute_type(a.dtype)), (a.dtype, b.dtype, out.dtype)
    return out.size > 0 and K > 0


class HostScalar(NamedTuple):
    """A number in the host's memory, where a library reads it before the call returns."""

    value: Array
    address: int


@lru_cache(maxsize=64)
def host_scalar(value: float, dtype: str) -> HostScalar:
    """The same few are used over and over. As long as the record is held, its address is valid."""
    array = np.full(1, value, dtype)
    return HostScalar(array, array.ctypes.data)
