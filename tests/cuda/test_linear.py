"""The linear map on a GPU against the reference, which computes in fp64 on the same stored values."""

import ml_dtypes
import numpy as np
import pytest

from minitrain.ops import linear as reference
from minitrain.ops.cuda.linear import BAND, bias_backward, linear_backward, linear_forward, linear_wide

BF16 = np.dtype(ml_dtypes.bfloat16)
FP16, FP32, FP64 = (np.dtype(t) for t in (np.float16, np.float32, np.float64))
TYPES = [(FP64, FP64), (FP32, FP32), (FP16, FP16), (BF16, BF16), (FP16, FP32), (BF16, FP32)]  # of x, of dW
ULP = {FP64: 2.0**-52, FP32: 2.0**-23, FP16: 2.0**-10, BF16: 2.0**-7}  # a unit in the last place of 1
SIZES = [(1, 1, 1), (7, 5, 3), (33, 31, 65), (2, 64, 32)]  # N, I, O


def normal(dtype, *shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(dtype)


def wide(*arrays):
    return [None if x is None else x.astype(np.float64) for x in arrays]


def check(x, wanted, terms, dtype):
    """Half a unit for the rounding of the result; a few units of fp32 (or fp64) for its `terms`, that is for
    what was added up, without signs.
    """
    assert x.dtype == dtype and x.flags.c_contiguous
    sums = ULP[FP64] if dtype == FP64 else ULP[FP32]
    error = np.abs(x.astype(np.float64) - wanted)
    assert (error <= 0.51 * ULP[dtype] * np.abs(wanted) + 4 * sums * terms).all()


def poisoned(monkeypatch):
    """Memory that is given out holds NaN."""
    empty_like = np.empty_like
    monkeypatch.setattr(np, "empty_like", lambda x, **how: np.full_like(empty_like(x, **how), np.nan))


@pytest.mark.parametrize("types", TYPES, ids=str)
@pytest.mark.parametrize(("N", "I", "O"), SIZES)
@pytest.mark.parametrize("with_bias", [False, True])
def test_forward(gpu, monkeypatch, N, I, O, with_bias, types):
    x, w, bias = normal(types[0], N, I), normal(types[0], O, I), normal(types[0], O) if with_bias else None
    kept = [None if a is None else a.copy() for a in (x, w, bias)]
    poisoned(monkeypatch)
    y, logits = linear_forward(gpu, x, w, bias), linear_wide(gpu, x, w)
    monkeypatch.undo()
    terms = reference.linear_forward(*(None if a is None else abs(a) for a in wide(x, w, bias)))
    check(y, reference.linear_forward(*wide(x, w, bias)), terms, types[0])
    check(logits, reference.linear_wide(*wide(x, w)), terms, FP64 if types[0] == FP64 else FP32)
    for a, b in zip((x, w, bias), kept, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("types", TYPES, ids=str)
@pytest.mark.parametrize(("N", "I", "O"), SIZES)
@pytest.mark.parametrize("with_bias", [False, True])
def test_backward(gpu, monkeypatch, N, I, O, with_bias, types):
    dtype, of_grads = types
    dy, x, w = normal(dtype, N, O), normal(dtype, N, I, seed=1), normal(dtype, O, I, seed=2)
    grads = [normal(of_grads, O, I, seed=3), normal(of_grads, O, seed=4) if with_bias else None]
    kept = [a.copy() for a in (dy, x, w)]
    wanted, terms = wide(*grads), [None if a is None else abs(a) for a in wide(*grads)]
    wanted_dx = reference.linear_backward(*wide(dy, x, w), *wanted)
    terms_dx = reference.linear_backward(*(abs(a) for a in wide(dy, x, w)), *terms)
    poisoned(monkeypatch)
    dx = linear_backward(gpu, dy, x, w, *grads)
    monkeypatch.undo()
    check(dx, wanted_dx, terms_dx, dtype)
    for grad, values, size in zip(grads, wanted, terms, strict=True):
        if grad is not None:
            check(grad, values, size, of_grads)
    for a, b in zip((dy, x, w), kept, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("types", TYPES, ids=str)
@pytest.mark.parametrize("N", [1, 31, BAND - 1, BAND, BAND + 1, 3 * BAND + 9])
@pytest.mark.parametrize("O", [1, 33, 257])
def test_bias(gpu, monkeypatch, N, O, types):
    dy, dbias = normal(types[0], N, O), normal(types[1], O, seed=1)
    wanted, terms = wide(dbias, abs(dbias))
    reference.bias_backward(*wide(dy), wanted)
    reference.bias_backward(*wide(abs(dy)), terms)
    again = dbias.copy()
    poisoned(monkeypatch)
    bias_backward(gpu, dy, dbias)
    bias_backward(gpu, dy, again)
    monkeypatch.undo()
    check(dbias, wanted, terms, types[1])
    np.testing.assert_array_equal(dbias, again)


def test_no_rows(gpu):
    x, w = np.zeros((0, 3), np.float32), normal(FP32, 5, 3)
    dw, dbias = normal(FP32, 5, 3), normal(FP32, 5)
    kept = dw.copy(), dbias.copy()
    assert linear_forward(gpu, x, w, dbias).shape == linear_wide(gpu, x, w).shape == (0, 5)
    assert linear_backward(gpu, np.zeros((0, 5), np.float32), x, w, dw, dbias).shape == (0, 3)
    np.testing.assert_array_equal(dw, kept[0])
    np.testing.assert_array_equal(dbias, kept[1])


class Rounded:
    """Rounds to `dtype` with a scale, into bf16, as the factors of fp8 are."""

    def __init__(self, dtype, scale):
        self.dtype, self.scale = dtype, scale

    def rounded(self, x):
        return (
            (x.astype(np.float32) * self.scale).astype(self.dtype).astype(np.float32) / self.scale
        ).astype(BF16)


class Factors:
    def __init__(self):
        self.x, self.w = Rounded(ml_dtypes.float8_e4m3fn, 16), Rounded(ml_dtypes.float8_e4m3fn, 32)
        self.dy = Rounded(ml_dtypes.float8_e5m2, 1024)


def test_fp8_rounds_the_factors_and_not_what_a_bias_gets(gpu):
    N, I, O = 9, 7, 5
    fp8, x, w, bias = Factors(), normal(BF16, N, I), normal(BF16, O, I, seed=1), normal(BF16, O)
    x8, w8, dy = fp8.x.rounded(x), fp8.w.rounded(w), normal(BF16, N, O, seed=2)
    dy8 = fp8.dy.rounded(dy)
    assert all((a != b).any() for a, b in ((x8, x), (w8, w), (dy8, dy)))
    np.testing.assert_array_equal(linear_forward(gpu, x, w, bias, fp8), linear_forward(gpu, x8, w8, bias))
    np.testing.assert_array_equal(linear_wide(gpu, x, w, fp8), linear_wide(gpu, x8, w8))
    dw, dw8, dbias, dbias8 = (normal(FP32, *shape) for shape in ((O, I), (O, I), (O,), (O,)))
    dx = linear_backward(gpu, dy, x, w, dw, dbias, fp8)
    np.testing.assert_array_equal(dx, linear_backward(gpu, dy8, x8, w8, dw8))
    np.testing.assert_array_equal(dw, dw8)
    bias_backward(gpu, dy, dbias8)
    np.testing.assert_array_equal(dbias, dbias8)
