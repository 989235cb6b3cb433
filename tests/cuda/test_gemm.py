"""Products of row-major matrices, against NumPy in fp64. Fakes that follow the libraries' documentation stand
for the libraries.
"""

import itertools

import ml_dtypes
import numpy as np
import pytest
from cuda.emulator import needs_emulator
from cuda.fake_cublas import CUBLASError, FakeCublas
from cuda.fake_cublaslt import STREAM, cublaslt, seen
from cuda.numpy_gemm import NumpyGemm

from minitrain.arrays.narrow import compute_type
from minitrain.ops.cuda.gemm_ex import CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION, GemmEx

BF16 = np.dtype(ml_dtypes.bfloat16)
FP16, FP32, FP64 = (np.dtype(t) for t in (np.float16, np.float32, np.float64))
TYPES = [(FP64, FP64), (FP32, FP32), (FP16, FP16), (BF16, BF16), (FP16, FP32), (BF16, FP32)]  # a and b, out
# Half a unit in the last place for the one rounding into `out`, and what sums of a few dozen fp32 terms lose.
TOLERANCE = {FP64: 1e-14, FP32: 2e-6, FP16: 2**-11 * 1.01, BF16: 2**-8 * 1.01}
GUARD = 7.5  # what lies around an array, and must be left as it is
TRANSPOSITIONS = list(itertools.product([False, True], repeat=2))
SIZES = [(1, 1, 1), (3, 5, 2), (1, 33, 4), (31, 1, 3), (33, 17, 65), (4, 8, 16)]  # M, N, K


def gemm_ex():
    return GemmEx(FakeCublas(), lambda x: x.ctypes.data)


GEMMS = {"numpy": NumpyGemm, "gemmEx": gemm_ex, "cublasLt": cublaslt}


@pytest.fixture(params=["numpy", "gemmEx", pytest.param("cublasLt", marks=needs_emulator)])
def gemm(request):
    return GEMMS[request.param]()


def framed(values, dtype, pad=3, shift=0):
    """The values within a larger array: rows lie `pad` elements further apart than they are long."""
    rows, columns = values.shape[-2:]
    whole = np.full((*values.shape[:-2], rows + 2, columns + pad + shift), GUARD, dtype)
    part = whole[..., 1 : rows + 1, shift : columns + shift]
    part[...] = values
    return whole, part


def operands(M, N, K, dtype, transpose_a=False, transpose_b=False, batch=()):
    rng = np.random.default_rng(M * 100 + N * 10 + K)
    shapes = (K, M) if transpose_a else (M, K), (N, K) if transpose_b else (K, N)
    return [rng.standard_normal((*batch, *shape)).astype(dtype) for shape in shapes]


def expected(a, b, transpose_a=False, transpose_b=False):
    a, b = (x.astype(np.float64) for x in (a, b))
    return (a.swapaxes(-1, -2) if transpose_a else a) @ (b.swapaxes(-1, -2) if transpose_b else b)


def check(out, values, terms):
    """`terms` bounds the size of what was added up: the error of a sum is relative to that."""
    error = np.abs(out.astype(np.float64) - values)
    bound = TOLERANCE[out.dtype] * np.abs(values) + TOLERANCE[compute_type(out.dtype)] * terms
    assert (error <= bound).all(), float((error / np.maximum(bound, 1e-300)).max())


def check_frame(whole, part):
    """Nothing but the part was written to."""
    part[...] = GUARD
    assert (whole == whole.dtype.type(GUARD)).all()


@pytest.mark.parametrize("types", TYPES, ids=str)
@pytest.mark.parametrize(("transpose_a", "transpose_b"), TRANSPOSITIONS)
@pytest.mark.parametrize(("M", "N", "K"), SIZES)
@pytest.mark.parametrize("add", [False, True])
def test_products(gemm, M, N, K, transpose_a, transpose_b, types, add):
    a, b = operands(M, N, K, types[0], transpose_a, transpose_b)
    wanted = expected(a, b, transpose_a, transpose_b)
    terms = expected(abs(a), abs(b), transpose_a, transpose_b) + 3
    before = np.random.default_rng(0).standard_normal((M, N)).astype(types[1])
    (_, a_part), (_, b_part) = framed(a, types[0]), framed(b, types[0], 1, shift=1)
    whole, out = framed(before if add else np.full((M, N), np.nan), types[1], 2, shift=1)
    gemm.product(a_part, b_part, out, transpose_a=transpose_a, transpose_b=transpose_b, add=add)
    check(out, wanted + before.astype(np.float64) if add else wanted, terms)
    np.testing.assert_array_equal(a_part, a)
    np.testing.assert_array_equal(b_part, b)
    check_frame(whole, out)


@pytest.mark.parametrize("types", TYPES, ids=str)
def test_a_bias_is_added_before_the_one_rounding(gemm, types):
    M, N, K = 9, 5, 7
    a, b = operands(M, N, K, types[0], transpose_b=True)
    bias = np.random.default_rng(1).standard_normal(N).astype(types[1])
    kept, (whole, out) = bias.copy(), framed(np.full((M, N), np.nan), types[1])
    gemm.product(a, b, out, transpose_b=True, bias=bias)
    check(
        out,
        expected(a, b, transpose_b=True) + bias.astype(np.float64),
        expected(abs(a), abs(b), False, True) + 3,
    )
    np.testing.assert_array_equal(bias, kept)
    check_frame(whole, out)


@pytest.mark.parametrize(("M", "N", "K"), [(0, 3, 4), (3, 0, 4), (3, 4, 0), (0, 0, 0)])
def test_empty_arrays(gemm, M, N, K):
    a, b = operands(M, N, K, FP32)
    out, bias = np.full((M, N), np.nan, np.float32), np.arange(N, dtype=np.float32)
    gemm.product(a, b, out)
    np.testing.assert_array_equal(out, np.zeros((M, N)))
    gemm.product(a, b, out, bias=bias)
    np.testing.assert_array_equal(out, np.broadcast_to(bias, (M, N)))
    gemm.product(a, b, out, add=True)
    np.testing.assert_array_equal(out, np.broadcast_to(bias, (M, N)))
    gemm.batched(a[None], b[None], out[None])
    np.testing.assert_array_equal(out, np.zeros((M, N)))
    gemm.batched(np.zeros((0, 2, M, K)), np.zeros((0, 2, K, N)), np.zeros((0, 2, M, N)))


@pytest.mark.parametrize("types", TYPES, ids=str)
@pytest.mark.parametrize(("transpose_a", "transpose_b"), TRANSPOSITIONS)
@pytest.mark.parametrize("batch", [(4,), (1,), (2, 3), (3, 1, 2), (1, 1)])
@pytest.mark.parametrize("add", [False, True])
def test_batches(gemm, batch, transpose_a, transpose_b, types, add):
    M, N, K = 5, 3, 4
    a, b = operands(M, N, K, types[0], transpose_a, transpose_b, batch)
    before = np.random.default_rng(0).standard_normal((*batch, M, N)).astype(types[1])
    (_, a_part), (_, b_part) = framed(a, types[0]), framed(b, types[0], 1, shift=1)
    whole, out = framed(before if add else np.full((*batch, M, N), np.nan), types[1], 2, shift=1)
    how = {"transpose_a": transpose_a, "transpose_b": transpose_b}
    gemm.batched(a_part, b_part, out, **how, add=add, scale=0.375)
    wanted = 0.375 * expected(a, b, **how) + (before.astype(np.float64) if add else 0)
    check(out, wanted, expected(abs(a), abs(b), **how) + 3)
    check_frame(whole, out)


@pytest.mark.parametrize("types", TYPES, ids=str)
def test_batches_of_heads_that_lie_between_positions(gemm, types):
    """Attention's products of [B, T, H, K] in memory, where H / R key heads serve R query heads each."""
    B, T, G, R, K = 2, 5, 3, 2, 4
    rng = np.random.default_rng(0)
    q, k = (rng.standard_normal((B, T, G, n, K)).astype(types[0]).transpose(0, 2, 3, 1, 4) for n in (R, 1))
    scores = np.full((B, G, R, T, T), np.nan, types[1])
    gemm.batched(q, k, scores, transpose_b=True, scale=0.5)
    wanted, terms = 0.5 * expected(q, k, transpose_b=True), expected(abs(q), abs(k), transpose_b=True)
    check(scores, wanted, terms)
    weights = rng.standard_normal((B, G, R, T, T)).astype(types[0])
    o_BTGRK = np.full((B, T, G, R, K), np.nan, types[1])
    gemm.batched(weights, k, o_BTGRK.transpose(0, 2, 3, 1, 4))
    check(o_BTGRK.transpose(0, 2, 3, 1, 4), expected(weights, k), expected(abs(weights), abs(k)))


def test_strides_without_a_meaning_are_not_used(gemm):
    """Of the only row, and of the only matrix."""
    strided = np.lib.stride_tricks.as_strided
    a, b = np.arange(3.0), np.arange(12.0).reshape(3, 4)
    out, outs = np.full((1, 4), np.nan), np.full((2, 1, 4), np.nan)
    gemm.product(strided(a, (1, 3), (0, 8)), b, out)
    np.testing.assert_array_equal(out, (a @ b)[None])
    gemm.batched(strided(a, (1, 1, 3), (8, 8, 8)), strided(b, (1, 3, 4), (1000, 32, 8)), outs)
    np.testing.assert_array_equal(outs, np.broadcast_to(a @ b, (2, 1, 4)))


@pytest.mark.parametrize(
    ("shape", "order", "calls"),
    [
        ((2, 3), (0, 1, 2, 3), [6]),  # contiguous: one run
        ((2, 3), (0, 2, 1, 3), [3, 3]),  # [B, T, H, K]: all heads of a sequence
        ((3, 2), (0, 2, 1, 3), [3, 3]),  # or all sequences of a head, which are more
        ((1, 4), (0, 2, 1, 3), [4]),
        ((1, 1), (0, 2, 1, 3), [1]),
    ],
)
def test_matrices_at_equal_distances_are_one_call(shape, order, calls):
    library = FakeCublas()
    a, b, out = (np.ones([(*shape, 4, 4)[i] for i in order]).transpose(order) for _ in range(3))
    GemmEx(library, lambda x: x.ctypes.data).batched(a, b, out)
    assert [n for _, n in library.calls] == calls
    assert {name for name, _ in library.calls} == {"gemmStridedBatchedEx" if calls != [1] else "gemmEx"}
    np.testing.assert_array_equal(out, np.full((*shape, 4, 4), 4.0))


def test_sums_are_not_rounded_on_the_way():
    library = FakeCublas()
    GemmEx(library, lambda x: x.ctypes.data)
    assert library.math_mode == CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION


def aligned(dtype, size, to):
    """An array whose address is a multiple of `to`, but not of 2 * `to`."""
    memory = np.zeros(size * np.dtype(dtype).itemsize + 1024, np.uint8)
    start = (-memory.ctypes.data) % 512 + to
    return memory[start : start + size * np.dtype(dtype).itemsize].view(dtype)


@needs_emulator
def test_cublaslt_chooses_an_algorithm_once_for_a_problem():
    gemm, before = cublaslt(), seen("heuristics")
    a, a2, b, out = (aligned(np.float32, 16, 16).reshape(4, 4) for _ in range(4))

    def chosen(*arrays, **how):
        gemm.product(*arrays, **how)
        return seen("heuristics") - before

    assert chosen(a, b, out) == chosen(a, b, out) == chosen(a2, b, out, add=True) == 1
    assert chosen(a, b, out, transpose_b=True) == 2
    assert chosen(a, b, out, bias=np.ones(4, np.float32)) == 3
    assert seen("stream") == STREAM
    assert seen("preferences") == 0
    assert seen("schemes") == 2  # sums of parts in the type of the sums, and no others


@needs_emulator
def test_cublaslt_is_told_how_arrays_are_aligned():
    """An algorithm for one alignment is not used for another; nor is a bias for another."""
    gemm = cublaslt()
    for to_a, to_b, to_out, to_bias in [(256, 256, 256, 256), (2, 64, 4, 16), (128, 2, 8, 2), (256, 4, 2, 4)]:
        a, b = aligned(BF16, 12, to_a).reshape(3, 4), aligned(BF16, 8, to_b).reshape(2, 4)
        out = aligned(BF16, 6, to_out).reshape(3, 2)
        a[...], b[...] = to_a, 0.5
        for value in (1, 2):
            bias = aligned(BF16, 2, to_bias)
            bias[...] = value * to_bias
            gemm.product(a, b, out, transpose_b=True, bias=bias)
            np.testing.assert_array_equal(out, np.full((3, 2), BF16.type(2 * to_a + value * to_bias)))


@needs_emulator
def test_a_status_of_cublaslt_says_which_call_and_what():
    gemm = cublaslt()
    a, b, out = np.ones((2, 2), np.float32), np.ones((2, 2), np.float32), np.ones((2, 2), np.float32)
    gemm._handle = 1
    with pytest.raises(RuntimeError, match="Heuristic: CUBLAS_STATUS_NOT_INITIALIZED"):
        gemm.product(a, b, out)


def test_what_cannot_be_multiplied_is_refused(gemm):
    a, b, out = np.ones((2, 3)), np.ones((3, 4)), np.ones((2, 4))
    wrong = [
        (a, b.T, out, {}),
        (a, b, out.T, {}),
        (a, b, out, {"transpose_a": True}),
        (a, b.astype(np.float32), out, {}),
        (a, b, out.astype(np.float32), {}),
        (np.asfortranarray(a), b, out, {}),
        (np.ones((2, 6))[:, ::2], b, out, {}),
        (a, b, np.asfortranarray(out), {}),
        (a, b, out, {"bias": np.ones(3)}),
        (a, b, out, {"bias": np.ones(4, np.float32)}),
        (a, b, out, {"bias": np.ones(4), "add": True}),
    ]
    for a_, b_, out_, how in wrong:
        with pytest.raises((AssertionError, ValueError)):
            gemm.product(a_, b_, out_, **how)


GOOD = {"transa": 0, "transb": 0, "m": 2, "n": 3, "k": 4, "lda": 4, "ldb": 4, "ldc": 4, "algo": -1}
GOOD |= {"Atype": 0, "Btype": 0, "Ctype": 0, "computeType": 68, "handle": 1234}


@pytest.mark.parametrize(
    "change",
    [
        *({"lda": 1}, {"ldb": 3}, {"ldc": 1}, {"transa": 1, "lda": 3}, {"transb": 1, "ldb": 2}),
        *({"Ctype": 14}, {"Atype": 14}, {"computeType": 70}, {"k": 0}, {"A": 0}, {"handle": 1}, {"algo": 5}),
    ],
    ids=str,
)
def test_the_fake_refuses_what_cublas_does(change):
    """The tests above can fail."""
    a, b, c, one = (np.ones(16, np.float32) for _ in range(4))
    memory = {"A": a, "B": b, "C": c, "alpha": one, "beta": one}
    FakeCublas().gemmEx(**GOOD, **{name: x.ctypes.data for name, x in memory.items()})
    with pytest.raises(CUBLASError):
        FakeCublas().gemmEx(**({name: x.ctypes.data for name, x in memory.items()} | GOOD | change))
