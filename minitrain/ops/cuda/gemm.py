"""Matrix products on a GPU: one small interface, and its first implementation, by cuBLAS's `GemmEx`.

Arrays are row-major, the library reads memory column by column. The memory of a row-major X [R, C] whose
rows are `ld` elements apart is to the library the matrix X^T [C, R] with leading dimension `ld`. And

    out = op(a) op(b)     <=>     out^T = op(b)^T op(a)^T

so the library is asked for an N x M product of b's memory by a's, in this order, each with the transposition
that was asked for: b's memory is b^T to it, hence CUBLAS_OP_N where op(b) = b, and CUBLAS_OP_T where
op(b) = b^T. Nothing is copied, and a view of rows or of columns of a larger array is as good as a whole one.

Shapes: M rows and N columns of `out`, K terms in each of its sums.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import numpy as np

from minitrain.arrays.narrow import compute_type
from minitrain.arrays.types import Array
from minitrain.ops.cuda.gemm_layout import layout, sizes

# cudaDataType_t: CUDA_R_32F, CUDA_R_64F, CUDA_R_16F, CUDA_R_16BF
CUDA_TYPE = {"float32": 0, "float64": 1, "float16": 2, "bfloat16": 14}
# cublasComputeType_t, by the type of the sums: CUBLAS_COMPUTE_32F (which is not TF32), CUBLAS_COMPUTE_64F
COMPUTE_TYPE = {"float32": 68, "float64": 70}
CUBLAS_GEMM_DEFAULT = -1  # cublasGemmAlgo_t: the library's choice, tensor cores included
# cublasMath_t. Without it the parts of a long sum may be rounded to 16 bits before they are added up.
CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION = 16


class Gemm(Protocol):
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
        """out_MN = op(a)_MK op(b)_KN; with `add`, out_MN + that; with a bias, bias_N + that."""

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


class GemmEx:
    """By `cublasGemmEx` and `cublasGemmStridedBatchedEx`.

    With a handle of its own, for the device that is current when it is made: CuPy's keeps its settings.
    `cublas` is CuPy's module of that name, which puts every call on CuPy's current stream; `address` tells
    where an array's data are.
    """

    def __init__(self, cublas: Any, address: Callable[[Any], int]) -> None:
        self._cublas, self._address = cublas, address
        self._handle = cublas.create()
        cublas.setMathMode(self._handle, CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION)

    @classmethod
    def of_cupy(cls) -> "GemmEx":
        """Raises ImportError where CuPy or cuBLAS is missing."""
        from cupy_backends.cuda.libs import cublas

        return cls(cublas, lambda x: int(x.data.ptr))

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
        """See `Gemm`."""
        assert a.ndim == 2
        if bias is not None:
            assert not add and bias.dtype == out.dtype and bias.shape == out.shape[1:]
            out[...] = bias  # the product is then added to it
        self._multiply(a, b, out, transpose_a, transpose_b, add or bias is not None, 1.0)

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
        """See `Gemm`."""
        self._multiply(a, b, out, transpose_a, transpose_b, add, scale)

    def _multiply(
        self, a: Array, b: Array, out: Array, transpose_a: bool, transpose_b: bool, add: bool, scale: float
    ) -> None:
        M, N, K = sizes(a, b, out, transpose_a, transpose_b)
        sums = type_of_sums(a, b, out)
        if is_trivial(out, K, add):
            return
        at = layout(a, b, out)
        alpha, beta = host_scalar(scale, sums), host_scalar(float(add), sums)
        type_ab, type_out = CUDA_TYPE[a.dtype.name], CUDA_TYPE[out.dtype.name]
        problem = self._handle, int(transpose_b), int(transpose_a), N, M, K
        how = COMPUTE_TYPE[sums], CUBLAS_GEMM_DEFAULT
        for start_a, start_b, start_out in at.starts:
            a_is = self._address(a) + start_a * a.itemsize, type_ab, at.ld_a
            b_is = self._address(b) + start_b * b.itemsize, type_ab, at.ld_b
            out_is = self._address(out) + start_out * out.itemsize, type_out, at.ld_out
            if at.n_matrices == 1:
                self._cublas.gemmEx(*problem, alpha.address, *b_is, *a_is, beta.address, *out_is, *how)
            else:
                self._cublas.gemmStridedBatchedEx(
                    *(*problem, alpha.address, *b_is, at.stride_b, *a_is, at.stride_a),
                    *(beta.address, *out_is, at.stride_out, at.n_matrices, *how),
                )


def type_of_sums(a: Array, b: Array, out: Array) -> str:
    """The name of the type in which products are added up. The library has no other combinations."""
    sums = compute_type(a.dtype)
    assert a.dtype == b.dtype and out.dtype in (a.dtype, sums), (a.dtype, b.dtype, out.dtype)
    return sums.name


def is_trivial(out: Array, K: int, add: bool) -> bool:
    """Whether there is nothing to multiply, which the library refuses. Then `out` is as it should be."""
    if K == 0 and not add:
        out[...] = 0
    return out.size == 0 or K == 0


class HostScalar(NamedTuple):
    """A number in the host's memory, where the library reads it before the call returns."""

    value: Array
    address: int


@lru_cache(maxsize=64)
def host_scalar(value: float, dtype: str) -> HostScalar:
    """The same few are used over and over. As long as the record is held, its address is valid."""
    array = np.full(1, value, dtype)
    return HostScalar(array, array.ctypes.data)
