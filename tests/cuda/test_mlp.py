"""Kernels of SwiGLU and GELU against the reference (ops/mlp.py)."""

import numpy as np
import pytest
from cuda.numbers import TYPES, assert_rounded, random

from minitrain.arrays.device import Gpu
from minitrain.ops import mlp as reference
from minitrain.ops.cuda import mlp

SIZES = [(1, 1), (3, 31), (2, 33), (7, 257), (16, 64)]


@pytest.mark.parametrize("offset", [0, 1], ids=["aligned", "shifted"])
@pytest.mark.parametrize("dtype", TYPES.values(), ids=TYPES)
@pytest.mark.parametrize("N, F", SIZES)
def test_swiglu(gpu: Gpu, N: int, F: int, dtype: np.dtype, offset: int) -> None:
    gate, up, dh = (shifted(random(name, (N, F), dtype) * dtype.type(3), offset) for name in ("g", "u", "dh"))
    given = [a.copy() for a in (gate, up, dh)]
    h, saved = mlp.swiglu_forward(gpu, gate, up)
    dgate, dup = mlp.swiglu_backward(gpu, dh, saved)
    gate64, up64, dh64 = (a.astype(np.float64) for a in given)
    h64, saved64 = reference.swiglu_forward(gate64, up64)
    dgate64, dup64 = reference.swiglu_backward(dh64, saved64)
    for computed, exact in ((h, h64), (dgate, dgate64), (dup, dup64)):
        assert_rounded(computed, exact, scale=30)
    for before, after in zip(given, (gate, up, dh), strict=True):
        np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize("offset", [0, 1], ids=["aligned", "shifted"])
@pytest.mark.parametrize("dtype", TYPES.values(), ids=TYPES)
@pytest.mark.parametrize("N, F", SIZES)
def test_gelu(gpu: Gpu, N: int, F: int, dtype: np.dtype, offset: int) -> None:
    x, dh = (shifted(random(name, (N, F), dtype) * dtype.type(2), offset) for name in ("x", "dh"))
    given = [a.copy() for a in (x, dh)]
    h, saved = mlp.gelu_forward(gpu, x)
    dx = mlp.gelu_backward(gpu, dh, saved)
    x64, dh64 = (a.astype(np.float64) for a in given)
    h64, saved64 = reference.gelu_forward(x64)
    assert_rounded(h, h64, scale=10)
    assert_rounded(dx, reference.gelu_backward(dh64, saved64), scale=10)
    for before, after in zip(given, (x, dh), strict=True):
        np.testing.assert_array_equal(before, after)


def test_large_numbers_give_no_nan(gpu: Gpu) -> None:
    z = np.array([[-200.0, 200.0, 0.0]], np.float32)
    h, saved = mlp.swiglu_forward(gpu, z, np.ones_like(z))
    np.testing.assert_array_equal(h, [[0, 200, 0]])
    for gradient in mlp.swiglu_backward(gpu, np.ones_like(z), saved):
        assert np.isfinite(gradient).all()
    assert np.isfinite(mlp.gelu_backward(gpu, np.ones_like(z), mlp.gelu_forward(gpu, z)[1])).all()


def test_no_rows(gpu: Gpu) -> None:
    x = np.zeros((0, 8), np.float32)
    assert mlp.gelu_forward(gpu, x)[0].shape == (0, 8)


def shifted(x: np.ndarray, offset: int) -> np.ndarray:
    """A copy that begins `offset` elements after a multiple of 16 bytes."""
    memory = np.empty(x.nbytes + 64, np.uint8)
    start = -memory.ctypes.data % 16 + offset * x.itemsize
    copy = memory[start : start + x.nbytes].view(x.dtype).reshape(x.shape)
    copy[...] = x
    return copy
