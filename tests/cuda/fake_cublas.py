"""What `GemmEx` calls of `cupy_backends.cuda.libs.cublas`, on the host's memory, by cuBLAS's documentation:

    C = alpha op(A) op(B) + beta C        op(A) [m, k], op(B) [k, n], C [m, n]

Matrices are column-major: element (i, j) of A lies i + j lda elements after its first, and lda is no less
than the number of rows that are stored. Functions and arguments have CuPy's names and order. What the
documentation does not allow raises `CUBLASError`, as CuPy does for a status other than success.
"""

import ctypes

import ml_dtypes
import numpy as np

F32, F64, F16, BF16 = 0, 1, 2, 14  # cudaDataType_t
DTYPE = {F32: np.float32, F64: np.float64, F16: np.float16, BF16: ml_dtypes.bfloat16}
COMPUTE_32F, COMPUTE_64F = 68, 70  # cublasComputeType_t
SUMS = {COMPUTE_32F: np.float32, COMPUTE_64F: np.float64}
ALLOWED = {  # cublasGemmEx's table for real floats: compute type, type of A and B, type of C
    *((COMPUTE_32F, ab, c) for ab, c in [(F32, F32), (F16, F16), (BF16, BF16), (F16, F32), (BF16, F32)]),
    (COMPUTE_64F, F64, F64),
}
HANDLE = 1234


class CUBLASError(RuntimeError):
    pass


class FakeCublas:
    def __init__(self):
        self.calls = []  # (function, number of matrices)
        self.math_mode = 0

    def create(self):
        return HANDLE

    def setMathMode(self, handle, mode):
        require(handle == HANDLE, "NOT_INITIALIZED")
        self.math_mode = mode

    def gemmEx(
        self, handle, transa, transb, m, n, k, alpha, A, Atype, lda, B, Btype, ldb,
        beta, C, Ctype, ldc, computeType, algo,
    ):  # fmt: skip
        self.calls.append(("gemmEx", 1))
        multiply(
            *(handle, transa, transb, m, n, k, alpha, A, Atype, lda, 0, B, Btype, ldb, 0),
            *(beta, C, Ctype, ldc, 0, 1, computeType, algo),
        )

    def gemmStridedBatchedEx(
        self, handle, transa, transb, m, n, k, alpha, A, Atype, lda, strideA, B, Btype, ldb, strideB,
        beta, C, Ctype, ldc, strideC, batchCount, computeType, algo,
    ):  # fmt: skip
        self.calls.append(("gemmStridedBatchedEx", batchCount))
        multiply(
            *(handle, transa, transb, m, n, k, alpha, A, Atype, lda, strideA, B, Btype, ldb, strideB),
            *(beta, C, Ctype, ldc, strideC, batchCount, computeType, algo),
        )


def multiply(
    handle, transa, transb, m, n, k, alpha, A, Atype, lda, strideA, B, Btype, ldb, strideB,
    beta, C, Ctype, ldc, strideC, batchCount, computeType, algo,
):  # fmt: skip
    require(handle == HANDLE, "NOT_INITIALIZED")
    require(transa in (0, 1) and transb in (0, 1), "INVALID_VALUE")  # CUBLAS_OP_N, CUBLAS_OP_T
    require(min(m, n, k) >= 1, "INVALID_VALUE")  # 0 is documented for some of the functions only
    require(max(m, n, k, lda, ldb, ldc, batchCount) < 2**31, "INVALID_VALUE")
    require(Atype == Btype and (computeType, Atype, Ctype) in ALLOWED, "NOT_SUPPORTED")
    require(algo == -1, "NOT_SUPPORTED")  # CUBLAS_GEMM_DEFAULT
    a_rows, a_cols = (m, k) if transa == 0 else (k, m)
    b_rows, b_cols = (k, n) if transb == 0 else (n, k)
    require(lda >= a_rows and ldb >= b_rows and ldc >= m, "INVALID_VALUE")
    require(distinct(m, n, ldc, strideC, batchCount), "matrices C overlap")
    sums = SUMS[computeType]
    alpha, beta = at(alpha, sums, (1,), (1,))[0], at(beta, sums, (1,), (1,))[0]
    for i in range(batchCount):
        a = at(A, DTYPE[Atype], (a_rows, a_cols), (1, lda), i * strideA).astype(sums)
        b = at(B, DTYPE[Btype], (b_rows, b_cols), (1, ldb), i * strideB).astype(sums)
        c = at(C, DTYPE[Ctype], (m, n), (1, ldc), i * strideC)
        values = alpha * ((a.T if transa else a) @ (b.T if transb else b))
        if beta != 0:  # if it is 0, C need not hold numbers
            values += beta * c.astype(sums)
        c[...] = values


def at(address, dtype, shape, strides, start=0):
    """The array in memory. Strides and start are in elements."""
    dtype = np.dtype(dtype)
    require(address and address % dtype.itemsize == 0, "INVALID_VALUE")
    length = sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True)) + 1
    memory = (ctypes.c_char * (length * dtype.itemsize)).from_address(address + start * dtype.itemsize)
    return np.ndarray(shape, dtype, memory, strides=[s * dtype.itemsize for s in strides])


def distinct(m, n, ld, stride, count):
    """Whether no element belongs to two of the matrices."""
    places = np.arange(m)[:, None, None] + ld * np.arange(n)[:, None] + stride * np.arange(count)
    return len(np.unique(places)) == places.size


def require(condition, status):
    if not condition:
        raise CUBLASError(f"CUBLAS_STATUS_{status}")
