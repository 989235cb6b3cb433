"""Norm kernels against the reference (ops/norm.py)."""

import numpy as np
import pytest
from cuda.numbers import TYPES, assert_rounded, random, types_with_gradients

from minitrain.arrays.device import Gpu
from minitrain.ops import norm as reference
from minitrain.ops.cuda import norm

SIZES = [(1, 1), (3, 31), (2, 33), (5, 96), (300, 257), (2, 2100)]
EPS = 1e-5


@pytest.mark.parametrize("residual", [False, True], ids=["alone", "residual"])
@pytest.mark.parametrize("bias", [False, True], ids=["rms", "layer"])
@pytest.mark.parametrize("dtype, grad_dtype", types_with_gradients())
@pytest.mark.parametrize("N, D", SIZES)
def test_norm(gpu: Gpu, N: int, D: int, dtype, grad_dtype, bias: bool, residual: bool) -> None:
    if (N, D) == SIZES[4] and dtype not in (TYPES["fp64"], TYPES["bf16"]):
        pytest.skip("the large one in two types")
    x, dy, r, dr = (random(f"{name} {N} {D}", (N, D), dtype) for name in ("x", "dy", "r", "dr"))
    gain, shift = random("gain", (D,), dtype), random("bias", (D,), dtype)
    dgain, dshift = random("dgain", (D,), grad_dtype), random("dbias", (D,), grad_dtype)
    r, dr = (r, dr) if residual else (None, None)

    summed = x if r is None else (x.astype(np.float64) + r).astype(dtype)  # rounded where it is stored
    x64, dy64, gain64, dgain64, dshift64 = (a.astype(np.float64) for a in (summed, dy, gain, dgain, dshift))
    given = [a.copy() for a in (dy, gain, shift)]
    if bias:
        y, saved = norm.layer_norm_forward(gpu, x, gain, shift, EPS, r)
        y64, saved64 = reference.layer_norm_forward(x64, gain64, shift.astype(np.float64), EPS)
        dx = norm.layer_norm_backward(gpu, dy, saved, gain, dgain, dshift, dr)
        dx64 = reference.layer_norm_backward(dy64, saved64, gain64, dgain64, dshift64)
    else:
        y, saved = norm.rms_norm_forward(gpu, x, gain, EPS, r)
        y64, saved64 = reference.rms_norm_forward(x64, gain64, EPS)
        dx = norm.rms_norm_backward(gpu, dy, saved, gain, dgain, dr)
        dx64 = reference.rms_norm_backward(dy64, saved64, gain64, dgain64)
    if dr is not None:
        dx64 += dr
    assert saved.x_ND is x
    np.testing.assert_array_equal(x, summed)
    assert_rounded(y, y64)
    assert_rounded(dx, dx64, terms=D)
    assert_rounded(dgain, dgain64, terms=N)
    assert_rounded(dshift, dshift64 if bias else dshift, terms=N)
    for before, after in zip(given, (dy, gain, shift), strict=True):
        np.testing.assert_array_equal(before, after)


def test_no_rows(gpu: Gpu) -> None:
    x = np.zeros((0, 8), np.float32)
    gain, dgain = np.ones(8, np.float32), np.ones(8, np.float32)
    y, saved = norm.rms_norm_forward(gpu, x, gain, EPS)
    assert norm.rms_norm_backward(gpu, y, saved, gain, dgain).shape == (0, 8)
    np.testing.assert_array_equal(dgain, 1)
