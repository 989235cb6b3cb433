"""The kernels of the cross-entropy against the reference (ops/loss.py)."""

import numpy as np
import pytest
from cuda.numbers import TYPES, assert_rounded, random

from minitrain.arrays.device import Gpu
from minitrain.ops import loss as reference
from minitrain.ops.cuda import loss

SIZES = [(1, 1), (3, 31), (2, 32), (7, 257), (3, 2051)]  # N, V
FIRST = 100
WIDE = {name: TYPES[name] for name in ("fp64", "fp32")}
OUT = [("fp64", None), ("fp64", "fp64"), ("fp32", None), ("fp32", "fp32"), ("fp32", "fp16"), ("fp32", "bf16")]


def logits(N: int, V: int, dtype: np.dtype) -> np.ndarray:
    return random("z", (N, V), dtype) * dtype.type(5)


def targets(N: int, V: int) -> np.ndarray:
    """Held here, ignored, first and last of those held, below and above them."""
    some = [FIRST + V // 2, -1, FIRST, FIRST + V - 1, FIRST - 1, FIRST + V]
    return np.array([some[n % len(some)] for n in range(N)], np.int64)


@pytest.mark.parametrize("dtype", WIDE.values(), ids=WIDE)
@pytest.mark.parametrize("N, V", SIZES)
def test_local_max(gpu: Gpu, N: int, V: int, dtype: np.dtype) -> None:
    z = logits(N, V, dtype)
    z[:, V - 1] += 20 * (np.arange(N) % 2)  # the last is sometimes the largest
    z -= 50  # less than nothing at all
    m = loss.local_max(gpu, z)
    np.testing.assert_array_equal(m, reference.local_max(z))


def test_nan_is_the_largest(gpu: Gpu) -> None:
    z = logits(2, 40, TYPES["fp32"])
    z[1, 33] = np.nan
    assert np.isnan(loss.local_max(gpu, z)).tolist() == [False, True]
    m, sums = loss.max_and_sums(gpu, z, targets(2, 40), FIRST)
    assert np.isnan(m).tolist() == np.isnan(sums[0]).tolist() == [False, True]


@pytest.mark.parametrize("dtype", WIDE.values(), ids=WIDE)
@pytest.mark.parametrize("N, V", SIZES)
def test_forward(gpu: Gpu, N: int, V: int, dtype: np.dtype) -> None:
    z, of_target = logits(N, V, dtype), targets(N, V)
    exact = z.astype(np.float64)
    m = reference.local_max(z) + dtype.type(0.5)  # as if another rank had the largest
    sums = loss.exp_and_sums(gpu, z, m, of_target, FIRST)
    sums64 = reference.exp_and_sums(exact, m.astype(np.float64), of_target, FIRST)
    assert_rounded(z, exact)
    assert_rounded(sums, sums64, terms=V, scale=10)
    nll = loss.cross_entropy(gpu, sums, of_target)
    assert_rounded(nll, reference.cross_entropy(sums.astype(np.float64), of_target))
    assert not nll[of_target < 0].any()


@pytest.mark.parametrize("dtype", WIDE.values(), ids=WIDE)
@pytest.mark.parametrize("N, V", SIZES)
def test_maximum_and_sums_at_once(gpu: Gpu, N: int, V: int, dtype: np.dtype) -> None:
    z, of_target = logits(N, V, dtype), targets(N, V)
    z[0] = np.sort(z[0])  # the maximum rises all the time
    z[N // 2, : V // 2] = -np.inf
    given = z.copy()
    m, sums = loss.max_and_sums(gpu, z, of_target, FIRST)
    np.testing.assert_array_equal(z, given)
    np.testing.assert_array_equal(m, reference.local_max(z))
    sums64 = reference.exp_and_sums(z.astype(np.float64), m.astype(np.float64), of_target, FIRST)
    assert_rounded(sums, sums64, terms=V, scale=10)


@pytest.mark.parametrize("from_logits", [False, True], ids=["exp", "logits"])
@pytest.mark.parametrize("scale_on_device", [False, True], ids=["number", "array"])
@pytest.mark.parametrize("name, out", OUT)
@pytest.mark.parametrize("N, V", SIZES)
def test_backward(gpu: Gpu, N: int, V: int, name: str, out, scale_on_device, from_logits) -> None:
    x, of_target = logits(N, V, TYPES[name]), targets(N, V)
    m, sums = loss.max_and_sums(gpu, x, of_target, FIRST)
    sums[0] *= 1.5  # other ranks have more
    exp64 = np.exp(x.astype(np.float64) - m[:, None])
    if not from_logits:
        x = np.exp(x - m[:, None])
        exp64 = x.astype(np.float64)
    given, scale = x.copy(), 12.5
    exact = reference.logits_backward(exp64, sums.astype(np.float64), of_target, FIRST, scale)
    dz = loss.logits_backward(
        gpu,
        x,
        sums,
        of_target,
        FIRST,
        np.array([scale]) if scale_on_device else scale,
        TYPES[out] if out else None,
        m if from_logits else None,
    )
    assert_rounded(dz, exact, scale=scale)
    assert not dz[of_target < 0].any()
    assert dz.dtype == TYPES[out or name]
    if out in (None, name):
        assert dz is x
    else:
        np.testing.assert_array_equal(x, given)


def test_no_rows(gpu: Gpu) -> None:
    z, of_target = np.zeros((0, 5), np.float32), np.zeros(0, np.int64)
    m = loss.local_max(gpu, z)
    sums = loss.exp_and_sums(gpu, z, m, of_target, 0)
    assert loss.max_and_sums(gpu, z, of_target, 0)[1].shape == sums.shape == (2, 0)
    assert loss.cross_entropy(gpu, sums, of_target).shape == (0,)
    assert loss.logits_backward(gpu, z, sums, of_target, 0, 1.0) is z
