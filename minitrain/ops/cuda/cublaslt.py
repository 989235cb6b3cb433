"""Matrix products by `cublasLtMatmul`, with a binding of its own.

What `GemmEx` has not: the bias is added in the product's own kernel; stream and workspace are named in every
call, so that a product can be part of a CUDA graph; and an algorithm is chosen once for each problem.

What the numbers below mean is written in cublasLt.h and cublas_api.h, under the names beside them.
"""

import ctypes
from collections.abc import Callable
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np

from minitrain.arrays.narrow import compute_type
from minitrain.arrays.types import Array
from minitrain.ops.cuda.gemm import COMPUTE_TYPE, CUDA_TYPE, Gemm, Product, host_scalar
from minitrain.ops.cuda.gemm_layout import layout

WORKSPACE = 32 * 2**20  # bytes: what NVIDIA recommends for Hopper

# cublasLtMatmulDescAttributes_t, cublasLtMatrixLayoutAttribute_t, cublasLtMatmulPreferenceAttributes_t, each
# with the type of its value
DESC_TRANSA = 3, ctypes.c_int32  # CUBLASLT_MATMUL_DESC_TRANSA
DESC_TRANSB = 4, ctypes.c_int32  # CUBLASLT_MATMUL_DESC_TRANSB
DESC_EPILOGUE = 7, ctypes.c_uint32  # CUBLASLT_MATMUL_DESC_EPILOGUE
DESC_BIAS_POINTER = 8, ctypes.c_void_p  # CUBLASLT_MATMUL_DESC_BIAS_POINTER
LAYOUT_BATCH_COUNT = 5, ctypes.c_int32  # CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT
LAYOUT_BATCH_STRIDE = 6, ctypes.c_int64  # CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET
PREF_WORKSPACE = 1, ctypes.c_uint64  # CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES
PREF_REDUCTIONS = 3, ctypes.c_uint32  # CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK
PREF_ALIGNMENT_A = 5, ctypes.c_uint32  # CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES
PREF_ALIGNMENT_B = 6, ctypes.c_uint32  # ..._B_BYTES
PREF_ALIGNMENT_C = 7, ctypes.c_uint32  # ..._C_BYTES
PREF_ALIGNMENT_D = 8, ctypes.c_uint32  # ..._D_BYTES

EPILOGUE_BIAS = 4  # CUBLASLT_EPILOGUE_BIAS: one element for each row of the column-major result
# CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE: parts of a long sum are added up unrounded, or there are none.
REDUCTION_COMPUTE_TYPE = 2

STATUS = {  # cublasStatus_t
    1: "CUBLAS_STATUS_NOT_INITIALIZED",
    3: "CUBLAS_STATUS_ALLOC_FAILED",
    7: "CUBLAS_STATUS_INVALID_VALUE",
    8: "CUBLAS_STATUS_ARCH_MISMATCH",
    11: "CUBLAS_STATUS_MAPPING_ERROR",
    13: "CUBLAS_STATUS_EXECUTION_FAILED",
    14: "CUBLAS_STATUS_INTERNAL_ERROR",
    15: "CUBLAS_STATUS_NOT_SUPPORTED",
    16: "CUBLAS_STATUS_LICENSE_ERROR",
}


class HeuristicResult(ctypes.Structure):
    """cublasLtMatmulHeuristicResult_t. Its first member is the algorithm, a cublasLtMatmulAlgo_t."""

    _fields_ = [
        ("algo", ctypes.c_uint64 * 8),
        ("workspace_size", ctypes.c_size_t),
        ("state", ctypes.c_int),
        ("waves_count", ctypes.c_float),
        ("reserved", ctypes.c_int * 4),
    ]


_POINTER, _INT = ctypes.c_void_p, ctypes.c_int
_SET = (_POINTER, _INT, _POINTER, ctypes.c_size_t)  # of what, which attribute, its value, bytes of that
SIGNATURES: dict[str, tuple[Any, ...]] = {  # all return a cublasStatus_t
    "cublasLtCreate": (_POINTER,),
    "cublasLtMatmulDescCreate": (_POINTER, _INT, _INT),  # result, compute type, type of alpha and beta
    "cublasLtMatmulDescSetAttribute": _SET,
    # result, type, rows, columns, leading dimension
    "cublasLtMatrixLayoutCreate": (_POINTER, _INT, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_int64),
    "cublasLtMatrixLayoutSetAttribute": _SET,
    "cublasLtMatmulPreferenceCreate": (_POINTER,),
    "cublasLtMatmulPreferenceSetAttribute": _SET,
    "cublasLtMatmulPreferenceDestroy": (_POINTER,),
    # handle, operation, layouts of A, B, C, D, preference, results wanted, results, number of results
    "cublasLtMatmulAlgoGetHeuristic": (*7 * (_POINTER,), _INT, _POINTER, _POINTER),
    # handle, operation, alpha, A, its layout, B, its layout, beta, C, its layout, D, its layout,
    # algorithm, workspace, bytes of it, stream
    "cublasLtMatmul": (*14 * (_POINTER,), ctypes.c_size_t, _POINTER),
}


class Problem(NamedTuple):
    """What an algorithm is chosen for: of the library's A, which is b, its B, which is a, and the result."""

    transposed: tuple[bool, bool]
    types: tuple[int, int]  # of A and B, of the result
    sums: str
    shapes: tuple[tuple[int, int], ...]  # rows and columns in column-major terms
    leading_dimensions: tuple[int, int, int]
    n_matrices: int
    strides: tuple[int, int, int]
    alignments: tuple[int, int, int]  # bytes
    bias_alignment: int | None  # None: no bias


class Plan(NamedTuple):
    """A problem as the library knows it."""

    operation: int
    layouts: tuple[int, int, int]
    found: HeuristicResult


class CublasLt(Gemm):
    """Handle and plans live as long as the process.

    `library` is libcublasLt; `stream` tells the stream on which a product is done. The workspace is used by
    every product, so that they must all be on one stream.
    """

    def __init__(
        self, library: Any, address: Callable[[Any], int], stream: Callable[[], int], workspace: Array
    ) -> None:
        for name, argtypes in SIGNATURES.items():
            getattr(library, name).argtypes = argtypes
        self._library, self._address, self._stream, self._workspace = library, address, stream, workspace
        self._handle = self._new("cublasLtCreate")
        self._plans: dict[Problem, Plan] = {}

    @classmethod
    def of_cupy(cls) -> "CublasLt":
        """On the current device. Raises ImportError where CuPy or the library is missing."""
        import cupy

        pathfinder = import_module("cuda.pathfinder")
        try:
            path = pathfinder.load_nvidia_dynamic_lib("cublasLt").abs_path
        except pathfinder.DynamicLibNotFoundError as error:
            raise ImportError(str(error)) from error
        return cls(
            ctypes.CDLL(path),
            lambda x: int(x.data.ptr),
            lambda: int(cupy.cuda.get_current_stream().ptr),
            cupy.empty(WORKSPACE, np.uint8),
        )

    def _multiply(self, product: Product) -> None:
        a, b, out, transpose_a, transpose_b, add, scale, bias = product
        at, sums = layout(a, b, out), compute_type(a.dtype).name
        alpha, beta = host_scalar(scale, sums), host_scalar(float(add), sums)
        at_bias = None if bias is None else self._address(bias)
        for start_a, start_b, start_out in at.starts:
            at_a = self._address(a) + start_a * a.itemsize
            at_b = self._address(b) + start_b * b.itemsize
            at_out = self._address(out) + start_out * out.itemsize
            plan = self._plan(
                Problem(
                    (transpose_b, transpose_a),
                    (CUDA_TYPE[a.dtype.name], CUDA_TYPE[out.dtype.name]),
                    sums,
                    tuple((x.shape[-1], x.shape[-2]) for x in (b, a, out)),
                    (at.ld_b, at.ld_a, at.ld_out),
                    at.n_matrices,
                    (at.stride_b, at.stride_a, at.stride_out),
                    (alignment(at_b), alignment(at_a), alignment(at_out)),
                    None if at_bias is None else alignment(at_bias),
                ),
                at_bias,
            )
            layout_a, layout_b, layout_d = plan.layouts
            self._call(
                "cublasLtMatmul",
                *(self._handle, plan.operation, alpha.address, at_b, layout_a, at_a, layout_b),
                *(beta.address, at_out, layout_d, at_out, layout_d, ctypes.addressof(plan.found)),
                *(self._address(self._workspace), self._workspace.nbytes, self._stream()),
            )

    def _plan(self, problem: Problem, at_bias: int | None) -> Plan:
        """When a problem is met again, only the bias is elsewhere."""
        if problem not in self._plans:
            self._plans[problem] = self._make_plan(problem, at_bias)
        elif at_bias is not None:
            self._set("MatmulDesc", self._plans[problem].operation, DESC_BIAS_POINTER, at_bias)
        return self._plans[problem]

    def _make_plan(self, problem: Problem, at_bias: int | None) -> Plan:
        type_ab, type_out = problem.types
        operation = self._new("cublasLtMatmulDescCreate", COMPUTE_TYPE[problem.sums], CUDA_TYPE[problem.sums])
        self._set("MatmulDesc", operation, DESC_TRANSA, problem.transposed[0])
        self._set("MatmulDesc", operation, DESC_TRANSB, problem.transposed[1])
        if at_bias is not None:
            self._set("MatmulDesc", operation, DESC_EPILOGUE, EPILOGUE_BIAS)
            self._set("MatmulDesc", operation, DESC_BIAS_POINTER, at_bias)
        layouts = []
        for i, dtype in enumerate((type_ab, type_ab, type_out)):
            shape, ld = problem.shapes[i], problem.leading_dimensions[i]
            layouts.append(self._new("cublasLtMatrixLayoutCreate", dtype, *shape, ld))
            self._set("MatrixLayout", layouts[i], LAYOUT_BATCH_COUNT, problem.n_matrices)
            self._set("MatrixLayout", layouts[i], LAYOUT_BATCH_STRIDE, problem.strides[i])
        found = self._choose(problem, operation, layouts)
        return Plan(operation, (layouts[0], layouts[1], layouts[2]), found)

    def _choose(self, problem: Problem, operation: int, layouts: list[int]) -> HeuristicResult:
        preference = self._new("cublasLtMatmulPreferenceCreate")
        aligned_a, aligned_b, aligned_d = problem.alignments
        for attribute, value in (
            (PREF_WORKSPACE, self._workspace.nbytes),
            (PREF_REDUCTIONS, REDUCTION_COMPUTE_TYPE),
            (PREF_ALIGNMENT_A, aligned_a),
            (PREF_ALIGNMENT_B, aligned_b),
            (PREF_ALIGNMENT_C, aligned_d),
            (PREF_ALIGNMENT_D, aligned_d),
        ):
            self._set("MatmulPreference", preference, attribute, value)
        found, n_found = HeuristicResult(), ctypes.c_int(0)
        self._call(
            "cublasLtMatmulAlgoGetHeuristic",
            *(self._handle, operation, *layouts, layouts[2], preference),
            *(1, ctypes.addressof(found), ctypes.addressof(n_found)),
        )
        self._call("cublasLtMatmulPreferenceDestroy", preference)
        if n_found.value != 1 or found.state != 0:
            raise RuntimeError(f"cublasLtMatmulAlgoGetHeuristic: no algorithm for {problem}")
        return found

    def _new(self, name: str, *arguments: int) -> int:
        """What a function creates and stores where its first argument points."""
        created = ctypes.c_void_p()
        self._call(name, ctypes.addressof(created), *arguments)
        assert created.value is not None
        return created.value

    def _set(self, kind: str, of: int, attribute: tuple[int, Any], value: int) -> None:
        number, ctype = attribute
        data = ctype(value)
        self._call(f"cublasLt{kind}SetAttribute", of, number, ctypes.addressof(data), ctypes.sizeof(data))

    def _call(self, name: str, *arguments: int) -> None:
        status = getattr(self._library, name)(*arguments)
        if status:
            raise RuntimeError(f"{name}: {STATUS.get(status, f'status {status}')}")


def alignment(address: int) -> int:
    """The largest power of two that divides it, up to 256: more makes no difference to the library."""
    return min(address & -address, 256)
