"""Matrix products by `cublasGemmEx` and `cublasGemmStridedBatchedEx`, through CuPy's module `cublas`."""

from collections.abc import Callable
from typing import Any

from minitrain.arrays.narrow import compute_type
from minitrain.ops.cuda.gemm import COMPUTE_TYPE, CUDA_TYPE, Gemm, Product, host_scalar
from minitrain.ops.cuda.gemm_layout import layout

CUBLAS_GEMM_DEFAULT = -1  # cublasGemmAlgo_t: the library's choice, tensor cores included
# cublasMath_t. Without it the parts of a long sum may be rounded to 16 bits before they are added up.
CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION = 16


class GemmEx(Gemm):
    """With a handle of its own, for the device that is current when it is made: CuPy's keeps its settings.

    `cublas` puts every call on CuPy's current stream; `address` tells where an array's data are.
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

    def _multiply(self, product: Product) -> None:
        a, b, out, transpose_a, transpose_b, add, scale, bias = product
        if bias is not None:
            out[...] = bias
            add = True  # to the bias
        at, sums = layout(a, b, out), compute_type(a.dtype).name
        (M, N), K = out.shape[-2:], a.shape[-2 if transpose_a else -1]
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
