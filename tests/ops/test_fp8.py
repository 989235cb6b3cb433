"""8-bit factors: scales that fill the format, rounding as the library does it, histories."""

import ml_dtypes
import numpy as np
import pytest

from minitrain.arrays.types import Array
from minitrain.ops.fp8 import E4M3, E5M2, HISTORY, LARGEST, HostScales, Scaled8
from minitrain.ops.linear import linear_backward, linear_forward

RNG = np.random.default_rng(0)
TYPES = pytest.mark.parametrize("dtype", [E4M3, E5M2], ids=str)


def normal(*shape: int) -> Array:
    return RNG.standard_normal(shape).astype(np.float32)


@TYPES
def test_the_largest_number_is_that_of_the_type(dtype: np.dtype) -> None:
    assert LARGEST[dtype] == float(ml_dtypes.finfo(dtype).max)


@TYPES
@pytest.mark.parametrize("size", [1e-20, 1e-3, 1.0, 1e20])
def test_a_tensor_of_any_size_keeps_its_digits(dtype: np.dtype, size: float) -> None:
    """Scaled by its own maximum at first, by that of the step before then: half an ulp, 2^-4 or 2^-3."""
    tensor, x = Scaled8(dtype), normal(1000) * np.float32(size)
    half_ulp = 2.0**-4 if dtype == E4M3 else 2.0**-3
    for _ in range(2):
        error = np.abs(tensor.rounded(x) - x)
        assert np.all(error <= half_ulp * np.abs(x) + 2.0**-16 * size) and error.max() > half_ulp / 4 * size
        tensor.end_step(tensor.amax)
    assert LARGEST[dtype] / 2 < tensor.scale * np.abs(x).max() <= LARGEST[dtype]


@TYPES
def test_rounding_is_the_library_s(dtype: np.dtype) -> None:
    """With a scale of 1 (the largest value is the format's), to the bit, all values and midpoints."""
    values = np.arange(256, dtype=np.uint8).view(dtype).astype(np.float32)
    values = np.unique(values[np.isfinite(values)])
    x = np.concatenate([values, (values[:-1] + values[1:]) / 2, normal(1000)])
    tensor = Scaled8(dtype)
    found = tensor.rounded(x)
    assert tensor.amax == LARGEST[dtype]
    assert np.array_equal(found, x.astype(dtype).astype(np.float32))


def test_what_is_larger_than_the_last_steps_saturates() -> None:
    tensor = Scaled8(E4M3)
    tensor.end_step(1.0)
    assert tensor.rounded(np.array([1e6, -1e6, 1.0], np.float32)).tolist() == [1.75, -1.75, 1.0]
    assert tensor.amax == 1e6, "and is known from the next step on"


def test_nan_stays_and_counts_as_infinite() -> None:
    tensor = Scaled8(E4M3)
    tensor.end_step(1.0)
    for x in ([np.nan, 1], [1, 1]):
        assert np.isnan(tensor.rounded(np.array(x, np.float32))).tolist() == np.isnan(x).tolist()
        assert tensor.amax == np.inf


def test_a_maximum_counts_as_long_as_the_history_is() -> None:
    tensor = Scaled8(E5M2)
    tensor.end_step(1024.0)
    small = tensor.scale
    for _ in range(HISTORY - 1):
        tensor.end_step(1.0)
        assert tensor.scale == small
    tensor.end_step(1.0)
    assert tensor.scale == 1024 * small
    tensor.end_step(np.inf)
    assert tensor.scale == 1024 * small, "a step that was not finite says nothing"
    assert np.log2(tensor.scale) % 1 == 0


def test_the_products_of_a_linear_map() -> None:
    """Forward e4m3 x e4m3; backward e5m2 x e4m3: exactly the products of the rounded factors."""
    x, w, dy = normal(20, 30), normal(10, 30), normal(20, 10)
    fp8, dw = HostScales(1).maps[0], np.zeros_like(w)
    y = linear_forward(x, w, fp8=fp8)
    dx = linear_backward(dy, x, w, dw, fp8=fp8)
    x8, w8, dy8 = Scaled8(E4M3).rounded(x), Scaled8(E4M3).rounded(w), Scaled8(E5M2).rounded(dy)
    assert np.array_equal(y, x8 @ w8.T)
    assert np.array_equal(dx, dy8 @ w8) and np.array_equal(dw, dy8.T @ x8)
    assert [t.amax for t in fp8] == [np.abs(a).max() for a in (x, w, dy)]
    exact = x @ w.T
    assert 0.01 < np.linalg.norm(y - exact) / np.linalg.norm(exact) < 0.06
